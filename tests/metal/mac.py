"""Has CPU tensors count as a Mac's: the emulation runs them. Also a pytest plugin: -p tests.metal.mac."""

import shutil
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from lstm_fused.kernels import guard, verdicts
from lstm_fused.kernels.metal import launch, library

from lstm_fused.autograd import operators
from lstm_fused.backends import metal, table

from . import build
from .shader import emulated

# What the tests of the emulation need.
LACKING = "the emulation of Metal needs Linux and g++"
HERE = sys.platform == "linux" and shutil.which(build.compiler()[0]) is not None
_stack = ExitStack()


@contextmanager
def like_a_mac(folder, setting="auto"):
    """Run CPU tensors on the Metal engine by default; nothing is known of its kernels yet.

    A fixture that enters this must not depend on monkeypatch, which would be undone after it.
    """
    ready = replace(table.METAL, devices=("cpu",), unavailable=lambda: None)
    here = torch.library.Library("lstm_fused", "IMPL")
    here.impl("metal_forward", partial(operators.forward_kernel, metal.forward), "CPU")
    here.impl("metal_backward", partial(operators.backward_kernel, metal.backward), "CPU")
    with pytest.MonkeyPatch.context() as patch, emulated():
        patch.setenv("LSTM_FUSED_CACHE", str(folder))
        patch.setenv("LSTM_FUSED_GPU", setting)
        patch.delenv("LSTM_FUSED_KERNEL", raising=False)
        patch.setattr(metal, "unavailable", lambda: None)
        patch.setattr(metal, "DEVICE", "cpu")
        patch.setattr(table, "ENGINES", (ready, table.REFERENCE))
        patch.setattr(verdicts, "machine", lambda device: "a Mac")
        patch.setattr(verdicts, "card_name", lambda device: "a Mac")
        for known in (guard._decided, guard._warned, verdicts._known):
            known.clear()
        yield
    here._destroy()


@pytest.fixture
def unchecked_mac(tmp_path):
    """`like_a_mac` in a test, with kernels that run unchecked."""
    with like_a_mac(tmp_path, "unchecked"):
        yield


def plant(patch, old, new):
    """Replace a piece of the kernels' text, which has it, wherever it is; nothing is compiled yet."""
    plain = library.source

    def planted(*arguments):
        text = plain(*arguments)
        assert old in text
        return text.replace(old, new)

    patch.setattr(library, "source", planted)
    patch.setattr(launch, "library", cache(library.library.__wrapped__))


def pytest_configure(config):
    folder = _stack.enter_context(tempfile.TemporaryDirectory())
    _stack.enter_context(like_a_mac(folder, "unchecked"))


def pytest_unconfigure(config):
    _stack.close()
