"""The persistent kernels, compiled and run instruction by instruction."""

import pytest
import torch

triton = pytest.importorskip("triton")

from cases import Case, make_tensors  # noqa: E402
from compiled import CARDS  # noqa: E402
from lstm_fused.kernels import cooperative, exchange, persistent  # noqa: E402
from planting import planted  # noqa: E402
from ptx import Fault  # noqa: E402
from test_ptx import DTYPES, NAMES, TOLERANCE, Launcher  # noqa: E402

from lstm_fused import reference  # noqa: E402

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
    wanted = reference.lstm_forward(*(t[n] for n in NAMES), None, False, True)
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
    out = reference.lstm_forward(*(t[n] for n in NAMES), None, False, True)
    saved = (out.c, out.gates, t["c0"])
    weights = (t["weight_hh"], t["peephole"])
    wanted = reference.lstm_backward(*out[:3], *saved, *weights, None, None, False)[:5]  # but for dhw
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
    launch = Launcher(card, "persistent", direction, kind, H, seed=seed, function=getattr(module, name), **options)
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


@pytest.mark.parametrize("kind", ["fp16", "tf32"])
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_the_ring_goes_round(card, direction, kind):
    launch = launcher(card, direction, kind, ROUNDS.H)
    found, wanted = DIRECTIONS[direction](launch, kind, ROUNDS)
    torch.testing.assert_close(found, wanted, rtol=4 * TOLERANCE[kind], atol=4 * TOLERANCE[kind])
    assert not launch.late
