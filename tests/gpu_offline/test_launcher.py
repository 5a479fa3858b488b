"""Launches without Triton's search reach the kernel that Triton would find, with the same arguments."""

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from lstm_fused.kernels.choose import Plan  # noqa: E402
from lstm_fused.kernels.launcher import launch  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import JITFunction, driver  # noqa: E402

pytestmark = pytest.mark.skipif(
    triton.knobs.runtime.interpret, reason="nothing is compiled in the interpreter"
)


@triton.jit(do_not_specialize=["T"])
def lstm_copy_kernel(
    x, y, T, rows, H: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, PRECISION: tl.constexpr
):
    """Any parameters in the order of the kernels'."""
    at = tl.arange(0, BB)
    if y is not None:
        tl.store(y + at, tl.load(x + at, at < T * rows, other=0) + H, at < T)


class NoCard:
    """A driver of a card that is not there: it notes what is launched."""

    def __init__(self):
        self.launches = []
        self.device = 0

    def launcher_cls(self, source, metadata):
        def note(x, y, z, stream, function, packed, meta, enter, leave, *arguments):
            self.launches.append((source.hash(), (x, y, z), arguments))

        return note

    @property
    def utils(self):
        return self

    def load_binary(self, *_):
        return None, 0, 0, 0, 1024  # nothing that would have to be unloaded

    def get_device_properties(self, _):
        return {"max_shared_mem": 227 << 10}

    def get_current_device(self):
        return self.device

    def get_current_stream(self, _):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def card(monkeypatch):
    card = NoCard()
    monkeypatch.setattr(driver, "_active", card)
    yield card
    lstm_copy_kernel.device_caches.clear()


def plan_of(BB=16):
    return Plan("cooperative", "ieee", BB, 16, 128, 4)


def kinds_of_calls():
    x, y = torch.zeros(64), torch.zeros(64)
    plain = {"tensors": (x, y), "numbers": (3, 5), "constants": (8,)}
    yield "plain", plain
    yield "other numbers", plain | {"numbers": (48, 7)}
    yield "an address between", plain | {"tensors": (x[1:], y)}
    yield "another dtype", plain | {"tensors": (x.half(), y)}
    yield "none", plain | {"tensors": (x, None)}
    yield "one", plain | {"numbers": (3, 1)}
    yield "a multiple of 16", plain | {"numbers": (3, 32)}
    yield "large", plain | {"numbers": (3, 2**31 + 1)}
    yield "another constant", plain | {"constants": (9,)}


def direct(plan, grid, call):
    launch(plan, lstm_copy_kernel, grid, call["tensors"], call["numbers"], call["constants"])


@pytest.mark.parametrize("first", dict(kinds_of_calls()))
def test_every_kind_of_call_reaches_its_own_kernel(first, card, monkeypatch):
    """Whichever kind of call came before."""
    plan, calls = plan_of(), dict(kinds_of_calls())
    monkeypatch.delitem(plan.options, "launch_cooperative_grid")
    monkeypatch.delitem(plan.options, "BK")
    for call in (calls[first], *calls.values()):
        for grid in ((2, 3), (4, 1)):
            lstm_copy_kernel[grid](*call["tensors"], *call["numbers"], *call["constants"], **plan.options)
            wanted = card.launches.pop()
            for _ in range(2):
                direct(plan, grid, call)
                found = card.launches.pop()
                assert found[:2] == wanted[:2]
                assert all(a is b or a == b for a, b in zip(found[2], wanted[2], strict=True))
    assert not card.launches


def test_triton_searches_once(card, monkeypatch):
    plan, call = plan_of(), dict(kinds_of_calls())["plain"]
    monkeypatch.delitem(plan.options, "BK")
    direct(plan, (1, 1), call)
    monkeypatch.setattr(JITFunction, "run", None)
    direct(plan, (1, 1), call | {"numbers": (4, 6)})
    assert [numbers[2:4] for _, _, numbers in card.launches] == [(3, 5), (4, 6)]


def test_each_card_has_its_own(card, monkeypatch):
    """What is loaded on one cannot run on another."""
    plan, call = plan_of(), dict(kinds_of_calls())["plain"]
    monkeypatch.delitem(plan.options, "BK")
    direct(plan, (1, 1), call)
    card.device = 1
    searched = []
    run = JITFunction.run
    monkeypatch.setattr(JITFunction, "run", lambda *a, **k: searched.append(1) or run(*a, **k))
    direct(plan, (1, 1), call)
    assert searched


def test_hooks_before_a_launch_are_called(card, monkeypatch):
    plan, call = plan_of(), dict(kinds_of_calls())["plain"]
    monkeypatch.delitem(plan.options, "BK")
    called = []
    monkeypatch.setattr(lstm_copy_kernel, "pre_run_hooks", [lambda *a, **k: called.append(1)])
    for _ in range(2):
        direct(plan, (1, 1), call)
    assert len(called) == 2
