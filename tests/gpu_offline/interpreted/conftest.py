"""The interpreter, mended before any test runs in it; kernels run unchecked but where the check is tested."""

import os

import mending  # noqa: F401

os.environ.setdefault("LSTM_FUSED_GPU", "unchecked")
