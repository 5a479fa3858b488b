"""The persistent kernels, compiled and run instruction by instruction."""

import sys
from dataclasses import replace

import pytest
import torch

triton = pytest.importorskip("triton")

from cases import Case, layer_inputs, layer_saved, make_tensors  # noqa: E402
from compiled import CARDS  # noqa: E402
from lstm_fused.kernels import cooperative, exchange, persistent  # noqa: E402
from planting import planted  # noqa: E402
from ptx import Fault  # noqa: E402
from test_ptx import DIRECTIONS as COOPERATIVE  # noqa: E402
from test_ptx import DTYPES, TOLERANCE, Launcher  # noqa: E402

from lstm_fused import reference  # noqa: E402
from lstm_fused.contract import OutputGradients  # noqa: E402

KINDS = ("fp16", "bf16", "tf32")


@pytest.fixture(params=CARDS[:2], ids=lambda card: card.capability)
def card(request):
    return request.param


def all_ones(kind, *shape):
    word = {2: torch.int16, 4: torch.int32}[kind.itemsize]
    return torch.full(shape, -1, dtype=word).view(kind)


def forward(launch, kind, case, programs=None, **changes):
    """What the compiled kernel makes of a case, and what the reference makes of it."""
    T, B, H = case.T, case.B, case.H
    t = make_tensors(case, DTYPES[kind]) | changes
    wanted = reference.forward(layer_inputs(t))
    xw = t["x"].float() @ t["weight_ih"].float().T
    y, h_n, c_n, c, gates = found = [torch.full_like(w, torch.nan) for w in wanted]
    rows, columns = launch.plan.grid(B, H)
    ring = all_ones(y.dtype, launch.slots, rows * launch.plan.BB, columns * launch.plan.BH)
    launch.late = torch.zeros(1, dtype=torch.int32)
    tensors = [xw, t["weight_hh"], t["bias_ih"], t["peephole"], t["h0"], t["c0"], h_n, c_n, y, c, gates]
    tensors += [ring, torch.zeros(16, dtype=torch.int32), launch.late]
    for first in range(rows):
        launch((1, columns), tensors, T, B, first, rows, positions=programs)
    return found, list(wanted)


def backward(launch, kind, case, programs=None):
    """The same for the backward pass."""
    T, B, H = case.T, case.B, case.H
    t = make_tensors(case, DTYPES[kind])
    inputs = layer_inputs(t)
    out = reference.forward(inputs)
    saved = (out.c, out.gates, t["c0"])
    weights = (t["weight_hh"], t["peephole"])
    wanted = reference.backward(layer_saved(inputs, out), OutputGradients(*out[:3]))[:5]  # but for dhw
    found = [torch.full_like(w, torch.nan) for w in wanted]
    rows, columns = launch.plan.grid(B, H)
    partials = torch.full((rows, 7, H), torch.nan)
    ring = all_ones(DTYPES[kind], launch.slots, rows * launch.plan.BB, 4 * columns * launch.plan.BH)
    launch.late = torch.zeros(1, dtype=torch.int32)
    tensors = [*out[:3], *saved, *weights, *found, partials, ring]
    tensors += [torch.zeros(16, dtype=torch.int32), torch.zeros(columns, dtype=torch.int32), launch.late]
    for first in range(rows):
        launch((1, columns), tensors, T, B, first, rows, positions=programs)
    return found, list(wanted)


def launcher(card, direction, kind, H, module=persistent, seed=0, **options):
    name = f"lstm_{direction}_persistent_kernel"
    launch = Launcher(
        card, "persistent", direction, kind, H, seed=seed, function=getattr(module, name), **options
    )
    launch.slots = module.RING.value
    return launch


DIRECTIONS = {"forward": forward, "backward": backward}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_compiled_code_gives_what_the_reference_gives(card, direction, kind):
    case = Case("odd", T=3, B=17, I=3, H=40)
    launch = launcher(card, direction, kind, case.H)
    found, wanted = DIRECTIONS[direction](launch, kind, case)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])
    assert not launch.late


# So many steps that each slot of the ring serves three times; two programs share rows.
ROUNDS = Case("rounds", T=60, B=3, I=3, H=20)


@pytest.mark.parametrize("kind", ["fp16"])
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_the_ring_goes_round(card, direction, kind):
    launch = launcher(card, direction, kind, ROUNDS.H)
    found, wanted = DIRECTIONS[direction](launch, kind, ROUNDS)
    torch.testing.assert_close(found, wanted, rtol=4 * TOLERANCE[kind], atol=4 * TOLERANCE[kind])
    assert not launch.late


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Makes persistent kernels that give up soon, with faults: a module, what stands there, what instead."""

    def make(*faults):
        modules = {exchange: exchange, persistent: persistent}
        rename = persistent, "lstm_fused.kernels.exchange", "broken_exchange"
        for module, old, new in ((exchange, "1 << 22", "1 << 10"), *faults, rename):
            name = "broken_exchange" if module is exchange else "broken"
            if (module, old, new) == rename:
                monkeypatch.setitem(sys.modules, "broken_exchange", modules[exchange])
            modules[module] = planted(modules[module], old, new, tmp_path, name)
        return modules[persistent]

    return make


def goes_wrong(launch, direction, case):
    try:
        found, wanted = DIRECTIONS[direction](launch, "fp16", case)
    except Fault:
        return True
    bad = any((f - w).abs().max() > 0.02 or f.isnan().any() for f, w in zip(found, wanted, strict=True))
    return bool(launch.late) or bad


RINGS = {
    "no_fence": ((exchange, "        fence(NUM_WARPS)\n", ""),),
    "one_bank": ((exchange, "gl.constexpr(24)", "gl.constexpr(8)"),),
    "two_banks": ((exchange, "gl.constexpr(24)", "gl.constexpr(16)"),),
    "emptied_too_early": (
        (exchange, "range(BEHIND, BANK + BEHIND)", "range(BEHIND - 1, BANK + BEHIND - 1)"),
    ),
}


@pytest.mark.parametrize("fault", list(RINGS))
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_a_broken_ring_is_found(plant, direction, fault):
    module, case = plant(*RINGS[fault]), replace(ROUNDS, T=40)
    assert any(
        goes_wrong(launcher(CARDS[1], direction, "fp16", case.H, module, seed), direction, case)
        for seed in range(4)
    )


@pytest.mark.parametrize("kind", ["fp16", "tf32"])
def test_a_state_whose_bits_are_all_ones_ends(plant, card, kind):
    case = Case("small", T=2, B=3, I=3, H=20)
    h0 = torch.randn(case.B, case.H).to(DTYPES[kind])
    h0[1, 7:8] = all_ones(h0.dtype, 1)
    launch = launcher(card, "forward", kind, case.H, plant())
    found, wanted = forward(launch, kind, case, h0=h0)
    torch.testing.assert_close(found, wanted, rtol=4e-3, atol=4e-3, equal_nan=True)
    assert not launch.late
    kept = "    bits = gl.where(bits == -1, 0x7FFF if gl.int16 == WORD else 0x7FFFFFFF, bits)\n"
    launch = launcher(card, "forward", kind, case.H, plant((exchange, kept, "")))
    forward(launch, kind, case, h0=h0)
    assert launch.late


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_a_program_left_alone_gives_up(plant, card, direction):
    case = Case("small", T=2, B=3, I=3, H=20)
    launch = launcher(card, direction, "fp16", case.H, plant())
    DIRECTIONS[direction](launch, "fp16", case, programs=[(0, 0)])
    assert launch.late


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_so_does_one_of_a_cooperative_kernel(tmp_path, card, direction):
    case = Case("small", T=2, B=3, I=3, H=20)
    module = planted(cooperative, "1 << 22", "4", tmp_path)
    function = getattr(module, f"lstm_{direction}_cooperative_kernel")
    launch = Launcher(card, "cooperative", direction, "fp16", case.H, function=function)
    COOPERATIVE[direction](launch, "cooperative", "fp16", case, programs=[(0, 0)])
    assert launch.late
