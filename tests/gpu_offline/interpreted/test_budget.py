"""Counts the launches of a layer."""

from collections import defaultdict
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from cases import Case, layer_inputs, make_tensors
from lstm_fused.kernels import choose, cooperative, launch, resident, scratch, steps
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_fused import reference
from lstm_fused.autograd.function import LSTMBackwardFunction
from lstm_fused.autograd.gradients import Kept
from lstm_fused.backends.table import FLOATS, short
from lstm_fused.contract import INPUTS, OutputGradients, Saved, unflatten

# Views and allocations, which launch nothing.
FREE = {
    *("device", "empty", "new_empty", "empty_like", "promote_types"),
    *("view", "_unsafe_view", "t", "permute", "transpose", "slice", "detach"),
}
CASE = Case("small", T=3, B=17, I=5, H=7)


class Count(TorchDispatchMode):
    """Every operation of PyTorch that launches something; our kernels are counted in their stead."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.launched = []
        for module in (cooperative, resident, steps):
            for name in dir(module):
                if name.endswith("_kernel"):
                    count = partial(self.count, name)
                    monkeypatch.setattr(module, name, defaultdict(lambda count=count: count))

    def count(self, name, *arguments, **options):
        self.launched.append(name)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        if name == "triton_backward":
            with self:
                douts, saved = unflatten(args, OutputGradients, Saved)
                return launch.backward(saved, douts)
        if name not in FREE:
            self.launched.append(name)
        return function(*args, **(kwargs or {}))


# W_ih x of all steps: in float64 by a product of ours, whose rows do not depend on how many there are.
PROJECTION = dict.fromkeys(FLOATS, "mm") | {torch.float64: "lstm_product_kernel"}


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("kernel", ["resident", "cooperative"])
@pytest.mark.parametrize("save", [False, True])
def test_forward(kernel, save, dtype, monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", kernel)
    monkeypatch.setattr(launch, "card_at", lambda device: choose.CARDS[1])
    monkeypatch.setattr(launch, "on", lambda device: nullcontext())
    monkeypatch.setattr(cooperative, "timeout_flag", lambda like: like.new_empty(1))
    # These have no memory and are on a GPU for all that the launcher can tell.
    with FakeTensorMode() as fake:
        tensors = make_tensors(CASE, dtype).items()
        t = {n: v if v is None else torch.empty_like(v, device="cuda") for n, v in tensors}
    with fake, Count(monkeypatch) as count:
        launch.forward(layer_inputs(t, save=save))
    counters = ["zeros"] if kernel == "cooperative" else []
    assert count.launched == [PROJECTION[dtype], "add", *counters, f"lstm_forward_{kernel}_kernel"]


@pytest.mark.parametrize("kernel", ["resident", "cooperative"])
def test_backward_with_every_gradient(kernel, monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", kernel)
    monkeypatch.setattr(cooperative, "timeout_flag", lambda like: like.new_empty(1))
    monkeypatch.setattr(scratch, "_flags", {})  # which is read on the host
    t = make_tensors(CASE, torch.float32)
    inputs = layer_inputs(t)
    out = reference.forward(inputs)
    needed = [name for name, value in zip(INPUTS, inputs[:9], strict=False) if value is not None]
    with Count(monkeypatch) as count:
        kept = Kept(out.y, out.c, out.gates)
        LSTMBackwardFunction.gradients("triton", needed, (), OutputGradients(*out[:3]), inputs, kept)
    # Counters to zero, the sequence; gradients of x, W_ih, W_hh from the second step on and from the first.
    assert count.launched == ["zeros", f"lstm_backward_{kernel}_kernel", "mm", "mm", "mm", "addmm_"]
