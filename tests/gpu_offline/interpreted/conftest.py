"""The interpreter, mended before any test runs in it."""

import mending  # noqa: F401
