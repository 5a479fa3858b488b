"""Compiled persistent kernels against the reference, run instruction by instruction, and with faults."""

import sys
from dataclasses import replace

import pytest
import torch

triton = pytest.importorskip("triton")

from builds import CARDS, Build  # noqa: E402
from cases import Case  # noqa: E402
from launches import DIRECTIONS, DTYPES, TOLERANCE, Launcher  # noqa: E402
from lstm_fused.kernels import (  # noqa: E402
    cooperative,
    exchange,
    persistent_backward,
    persistent_forward,
    persistent_product,
)
from lstm_fused.kernels.choose import fitting  # noqa: E402
from planting import planted  # noqa: E402
from ptx import Fault  # noqa: E402

KINDS = ("fp16", "bf16", "tf32")
MODULES = {"forward": persistent_forward, "backward": persistent_backward}


@pytest.fixture(params=CARDS[:2], ids=lambda card: card.capability)
def card(request):
    return request.param


def all_ones(kind, *shape):
    word = {2: torch.int16, 4: torch.int32}[kind.itemsize]
    return torch.full(shape, -1, dtype=word).view(kind)


def launcher(card, direction, kind, H, modules=MODULES, BB=16, TILES=1, **options):
    function = getattr(modules[direction], f"lstm_{direction}_persistent_kernel")
    layer = Build("persistent", direction, kind, H, card).layer
    tiles = replace(next(plan for plan in fitting("persistent", layer, card) if plan.BB == BB), TILES=TILES)
    return Launcher(card, "persistent", direction, kind, H, function=function, tiles=tiles, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("BB", [8, 16])
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_compiled_code_gives_what_the_reference_gives(card, direction, BB, kind):
    case = Case("odd", T=3, B=17, I=3, H=40)
    launch = launcher(card, direction, kind, case.H, BB=BB)
    found, wanted = DIRECTIONS[direction](launch, "persistent", kind, case)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])
    assert not launch.timed_out


# Two programs share rows, of two or four batch tiles each; the last program's last tile has no row.
IN_TURN = Case("in_turn", T=3, B=33, I=3, H=20, lengths=(3, 2, 1) * 11, reverse=True)


@pytest.mark.parametrize(("kind", "TILES"), [("fp16", 2), ("tf32", 2), ("bf16", 4)])
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_so_it_does_with_batch_tiles_in_turn(card, direction, kind, TILES):
    launch = launcher(card, direction, kind, IN_TURN.H, TILES=TILES, uneven=True)
    found, wanted = DIRECTIONS[direction](launch, "persistent", kind, IN_TURN)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])
    assert not launch.timed_out


# Enough steps to use each slot of the ring three times; two programs share rows.
ROUNDS = Case("rounds", T=60, B=3, I=3, H=20)


# The same with two tiles in turn.
TURNS = replace(ROUNDS, B=19)


@pytest.mark.parametrize("kind", ["fp16"])
@pytest.mark.parametrize(
    ("case", "BB"), [(ROUNDS, 8), (ROUNDS, 16), (TURNS, 16)], ids=["alone_8", "alone", "in_turn"]
)
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_the_ring_goes_round(card, direction, case, BB, kind):
    launch = launcher(card, direction, kind, case.H, BB=BB, TILES=1 if case is ROUNDS else 2)
    found, wanted = DIRECTIONS[direction](launch, "persistent", kind, case)
    torch.testing.assert_close(found, wanted, rtol=4 * TOLERANCE[kind], atol=4 * TOLERANCE[kind])
    assert not launch.timed_out


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Makes kernels that time out soon, with a fault in the exchange: old source, new source."""

    def make(*faults, kernels=MODULES):
        broken = exchange
        for old, new in (("1 << 20", "1 << 10"), *faults):
            broken = planted(broken, old, new, tmp_path, "broken_exchange")
        monkeypatch.setitem(sys.modules, "broken_exchange", broken)
        rename = "lstm_fused.kernels.exchange", "broken_exchange"
        return {way: planted(module, *rename, tmp_path, f"broken_{way}") for way, module in kernels.items()}

    return make


def goes_wrong(launch, direction, case):
    try:
        found, wanted = DIRECTIONS[direction](launch, "persistent", "fp16", case)
    except Fault:
        return True
    bad = any((f - w).abs().max() > 0.02 or f.isnan().any() for f, w in zip(found, wanted, strict=True))
    return bool(launch.timed_out) or bad


RINGS = {
    "no_fence": (("        fence(NUM_WARPS)\n", ""),),
    "one_bank": (("gl.constexpr(24)", "gl.constexpr(8)"),),
    "two_banks": (("gl.constexpr(24)", "gl.constexpr(16)"),),
    "emptied_too_early": (("range(BEHIND, BANK + BEHIND)", "range(BEHIND - 1, BANK + BEHIND - 1)"),),
}


@pytest.mark.parametrize("fault", list(RINGS))
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_a_broken_ring_is_found(plant, direction, fault):
    module, case = plant(*RINGS[fault]), replace(ROUNDS, T=40)
    assert any(
        goes_wrong(launcher(CARDS[1], direction, "fp16", case.H, module, seed=seed), direction, case)
        for seed in range(16)
    )


# In a kernel that takes batch tiles in turn: old source, new source.
SLOT = "% RING * slot + n * "
IN_TURN_FAULTS = {
    "forward": {
        "one_slot_for_both": (f"{SLOT}(BB * WIDTH), h", f"{SLOT}0, h"),
        "another_row": ("gl.store(y + at + n * (BB * H)", "gl.store(y + at + n * (BB - 1) * H"),
        "not_published": (
            "            publish(own +",
            "            if n == 0:\n                publish(own +",
        ),
        "inputs_of_the_first": ("xw + at_gates + (n + 1) * (BB * 4 * H)", "xw + at_gates"),
        "reset_too_early": ("            if n == TILES - 1:\n", "            if n == 0:\n"),
        "not_reset": ("WIDTH, TILES, BB", "WIDTH, 1, BB"),
    },
    "backward": {
        "one_slot_for_both": (f"there = own + step {SLOT}(", f"there = own + step {SLOT}0 * ("),
        "another_row": ("gl.store(dh0 + state + n * (BB * H)", "gl.store(dh0 + state + n * (BB - 1) * H"),
        "not_published": (
            "            publish(there,",
            "            if n == 0:\n                publish(there,",
        ),
        "saved_of_the_first": ("REVERSE, n * BB,\n", "REVERSE, 0,\n"),
        "sums_of_the_last": ("add_step(sums,", "add_step((zero,) * 7 if n == 0 else sums,"),
        "not_reset": ("WIDTH, TILES, BB", "WIDTH, 1, BB"),
    },
}


@pytest.mark.parametrize(
    ("direction", "fault"), [(way, name) for way in DIRECTIONS for name in IN_TURN_FAULTS[way]]
)
def test_faults_in_turns_are_found(plant, tmp_path, direction, fault):
    old, new = IN_TURN_FAULTS[direction][fault]
    kernels = {direction: planted(MODULES[direction], old, new, tmp_path, f"fault_{fault}")}
    case = replace(TURNS, T=30 if "reset" in fault else 2)
    options = {"modules": plant(kernels=kernels), "TILES": 2}
    assert any(
        goes_wrong(launcher(CARDS[1], direction, "fp16", case.H, seed=seed, **options), direction, case)
        for seed in range(8)
    )


@pytest.mark.parametrize("kind", ["fp16", "tf32"])
def test_a_state_whose_bits_are_all_ones_ends(plant, card, kind):
    case = Case("small", T=2, B=3, I=3, H=20)
    h0 = torch.randn(case.B, case.H).to(DTYPES[kind])
    h0[1, 7:8] = all_ones(h0.dtype, 1)
    launch = launcher(card, "forward", kind, case.H, plant())
    found, wanted = DIRECTIONS["forward"](launch, "persistent", kind, case, h0=h0)
    torch.testing.assert_close(found, wanted, rtol=4e-3, atol=4e-3, equal_nan=True)
    assert not launch.timed_out
    kept = "    bits = gl.where(bits == -1, 0x7FFF if gl.int16 == WORD else 0x7FFFFFFF, bits)\n"
    launch = launcher(card, "forward", kind, case.H, plant((kept, "")))
    DIRECTIONS["forward"](launch, "persistent", kind, case, h0=h0)
    assert launch.timed_out


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_a_program_left_alone_gives_up(plant, card, direction):
    case = Case("small", T=2, B=3, I=3, H=20)
    launch = launcher(card, direction, "fp16", case.H, plant())
    DIRECTIONS[direction](launch, "persistent", "fp16", case, programs=[(0, 0)])
    assert launch.timed_out


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_so_does_one_of_a_cooperative_kernel(tmp_path, card, direction):
    case = Case("small", T=2, B=3, I=3, H=20)
    module = planted(cooperative, "1 << 20", "4", tmp_path)
    function = getattr(module, f"lstm_{direction}_cooperative_kernel")
    launch = Launcher(card, "cooperative", direction, "fp16", case.H, function=function)
    DIRECTIONS[direction](launch, "cooperative", "fp16", case, programs=[(0, 0)])
    assert launch.timed_out


# In a kernel with batch tiles of 8 rows: direction, module, old source, new source.
EIGHT_ROWS = {
    "gates_overlap": ("backward", persistent_backward, "there + BB * WIDTH,", "there + WIDTH,"),
    "columns_in_another_order": ("forward", persistent_product, "row % 8 * 2 +", "row % 8 +"),
    "sums_in_another_order": ("backward", persistent_product, "(0, 4, 1, 3, 2)", "(0, 4, 1, 2, 3)"),
    "saved_of_one_step": (
        "backward",
        persistent_backward,
        "saved, later = later, saved_next",
        "saved = later",
    ),
}


@pytest.mark.parametrize("fault", list(EIGHT_ROWS))
def test_faults_in_tiles_of_8_rows_are_found(tmp_path, monkeypatch, fault):
    direction, module, old, new = EIGHT_ROWS[fault]
    broken = planted(module, old, new, tmp_path, "broken_part")
    if module is persistent_product:
        monkeypatch.setitem(sys.modules, "broken_part", broken)
        rename = "lstm_fused.kernels.persistent_product", "broken_part"
        broken = planted(MODULES[direction], *rename, tmp_path, f"broken_{direction}")
    case = Case("odd", T=4, B=11, I=3, H=40)
    assert goes_wrong(
        launcher(CARDS[1], direction, "fp16", case.H, {direction: broken}, BB=8), direction, case
    )
