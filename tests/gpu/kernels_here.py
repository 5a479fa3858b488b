"""Which kernels run which cases here, on a GPU or in the interpreter."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from cases import DEVICE, Case
from lstm_fused.kernels import choose

ON_GPU = DEVICE == "cuda"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# float32 products are tf32 or float32's own, as PyTorch is told; the interpreter has no tf32.
PRECISIONS = [(dtype, "highest") for dtype in DTYPES] + [(torch.float32, "high")] * ON_GPU
TF32 = 2**-10  # one unit in the last place


def takes(kernel: str, case: Case, dtype: torch.dtype) -> bool:
    """Whether this kernel runs this case, forward and backward."""
    card = choose.card_at(torch.device("cuda", 0) if ON_GPU else torch.device("cpu"))
    layers = [
        choose.Layer(direction, case.H, max(case.B, 1), dtype, "ieee", case.P, case.varied)
        for direction in ("forward", "backward")
    ]
    return all(choose.fitting(kernel, layer, card) for layer in layers)


@contextmanager
def running(kernel: str, monkeypatch: pytest.MonkeyPatch):
    """Every layer runs on this kernel, or is refused."""
    monkeypatch.setenv("LSTM_FUSED_KERNEL", kernel)
    together = nullcontext()
    if kernel in choose.WAITING and not ON_GPU:
        # Run one after another, the first program would wait for the others forever.
        from tests.gpu_offline.interpreted.concurrently import concurrently

        together = concurrently(0)
    with together:
        yield
