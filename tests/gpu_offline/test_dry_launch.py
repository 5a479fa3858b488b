"""Compiles the launches of a user's call by Triton's own launch path, for a card that is not there.

Triton compiles a kernel for each kind of arguments: an integer that is 1 becomes a constant, as does a tensor
that is None. So calls of all kinds are made, with tensors on the CPU, and everything is done but the launch.
"""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

triton = pytest.importorskip("triton")

from builds import CARDS  # noqa: E402
from cases import Case, layer_inputs, layer_saved, make_tensors  # noqa: E402
from lstm_fused.kernels import launch, scratch  # noqa: E402
from lstm_fused.kernels.plan import EXCHANGES, KERNELS  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver, jit  # noqa: E402

from lstm_fused.contract import OutputGradients  # noqa: E402

# The smallest case with everything optional left out; and the opposite.
LEAST = Case("least", T=1, B=1, I=1, H=1, bias=False, peephole=False)
MOST = Case("most", T=2, B=17, I=3, H=20, lengths=(1, 2) * 8 + (0,), reverse=True)


class Driver:
    """A driver of an H100 that launches nothing."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that are launched, in order, all of them compiled."""
    names, run = [], jit.JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        compiled = run(self, *arguments, grid=grid, warmup=True, **options)
        assert "cubin" in compiled.asm
        names.append(self.fn.__name__)

    monkeypatch.setattr(jit.JITFunction, "run", compile_only)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    monkeypatch.setattr(launch, "card_at", lambda device: CARDS[1])
    monkeypatch.setattr(driver, "_active", Driver())
    return names


def call(case, dtype=torch.float16, **given):
    """Both passes."""
    t = make_tensors(case, dtype)
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    inputs = layer_inputs(t, lengths, case.reverse)
    out = launch.forward(inputs)
    douts = OutputGradients(out.y, *(out[1:3] if case is not LEAST else (None, None)))
    launch.backward(layer_saved(inputs, out), douts)


@pytest.mark.parametrize("case", [LEAST, MOST], ids=lambda case: case.name)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_call_compiles(launched, monkeypatch, kernel, case):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", kernel)
    call(case)
    wanted = {f"lstm_{way}_{kernel}_kernel" for way in ("forward", "backward")}
    assert set(launched) == wanted | ({"lstm_table_kernel"} if EXCHANGES[kernel] == "launches" else set())


def test_a_call_with_tiles_in_turn_compiles(launched, monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", "persistent")
    monkeypatch.setattr(launch, "card_at", lambda device: CARDS[1]._replace(sms=1))  # which holds one program
    call(MOST)
    # Only the backward pass takes tiles in turn.
    assert launched == [f"lstm_{way}_persistent_kernel" for way in ("forward", "forward", "backward")]


def test_a_call_with_a_projection_compiles(launched):
    call(Case("least", T=1, B=1, I=1, H=1, P=1))
    assert {"lstm_projection_step_kernel", "lstm_gradient_step_kernel"} <= set(launched)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_launch_after_one_that_gave_up_says_so_once(launched, monkeypatch, kernel):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", kernel)
    scratch.timeout_flag_on(torch.device("cpu")).fill_(1)
    with pytest.raises(RuntimeError, match="waited for others in vain"):
        call(LEAST)
    assert not launched
    call(LEAST)
    scratch.timeout_flag_on(torch.device("cpu")).fill_(1)
    with pytest.raises(RuntimeError, match="waited for others in vain"):
        call(LEAST)
    assert not scratch.timeout_flag_on(torch.device("cpu"))


NEWER_SETTING = """
import torch
from lstm_fused.kernels.choose import precision
assert precision() == "ieee"
torch.backends.cuda.matmul.fp32_precision = "tf32"
assert precision() == "tf32"
torch.backends.cuda.matmul.fp32_precision = "ieee"
assert precision() == "ieee"
"""


def test_products_are_formed_as_the_newer_setting_says_too():
    subprocess.run([sys.executable, "-c", NEWER_SETTING], check=True)
