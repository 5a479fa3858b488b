"""A short random search over all options; `make fuzz` runs a longer one."""

import pytest
from cases import DEVICE
from fuzz import search
from oracle import EXTENDED

DRAWS = 25  # for each seed


@pytest.mark.skipif(DEVICE != "cpu", reason="the search draws CPU engines")
@pytest.mark.skipif(not EXTENDED, reason="numpy has no precision beyond float64 here")
@pytest.mark.parametrize("seed", range(6))
def test_random_options_equal_the_oracle(seed):
    failure = search(seed, 0, DRAWS, lambda *_: False)
    assert failure is None, failure
