"""Checks of an engine against the reference, installed with the package; see docs/testing.md.

`python -m lstm_fused --check` runs them on the engines of this machine. To test an engine or a variant of
your own, call `assert_engine_matches_reference` and `assert_engine_has_derivatives`.
"""

from lstm_fused.testing.cases import CASES, Case
from lstm_fused.testing.comparison import assert_engine_matches_reference
from lstm_fused.testing.derivatives import assert_engine_has_derivatives

__all__ = ["CASES", "Case", "assert_engine_has_derivatives", "assert_engine_matches_reference"]
