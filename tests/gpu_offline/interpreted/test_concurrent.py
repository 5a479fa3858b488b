"""The cooperative kernels under random schedules and weak memory, and faults that this must find."""

from dataclasses import replace

import pytest
import torch
from cases import Case, layer_inputs, layer_saved, make_tensors
from concurrently import Deadlock, Launch, Race, concurrently
from lstm_fused.kernels import choose, cooperative, launch, resident, scratch, sums
from planting import planted

from lstm_fused import reference
from lstm_fused.contract import OutputGradients

CASE = Case("three_programs", T=3, B=3, I=2, H=19, lengths=(3, 1, 0), reverse=True)
SIX = Case("six_programs", T=2, B=17, I=2, H=19)

# What to break in the kernels' source, and what must come of it.
FAULTS = {
    "no_wait_for_others": ("(seen < count) & (left > 0)", "(seen < 0) & (left > 0)", Race),
    "relaxed_arrive": ('sem="release"', 'sem="relaxed"', Race),
    "relaxed_wait": ('sem="acquire"', 'sem="relaxed"', Race),
    "arrive_before_the_store": ("        arrive(arrived)\n", "", Deadlock),
    "wait_for_one_too_few": (
        "(step + 1) * tl.num_programs(1), polls",
        "(step + 1) * tl.num_programs(1) - 1, polls",
        Race,
    ),
    "wait_for_one_too_many": (
        "(step + 1) * tl.num_programs(1), polls",
        "(step + 1) * tl.num_programs(1) + 1, polls",
        Deadlock,
    ),
}
# The forward pass alone hands h over by two buffers in turn.
FORWARD_FAULTS = {"one_buffer": ("(step + 1) % 2", "step % 2", Race)}


@pytest.fixture(autouse=True)
def named_kernel(monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", "cooperative")
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    yield
    torch.use_deterministic_algorithms(False)


def forward_inputs(case):
    t = make_tensors(case, torch.float32)
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    return (layer_inputs(t, lengths, case.reverse),)


def backward_inputs(case):
    (inputs,) = forward_inputs(case)
    out = reference.forward(inputs)
    return layer_saved(inputs, out), OutputGradients(*out[:3])


def check(direction, case, seed):
    inputs = forward_inputs(case) if direction == "forward" else backward_inputs(case)
    wanted = getattr(reference, direction)(*inputs)
    with concurrently(seed):
        found = getattr(launch, direction)(*inputs)
    torch.testing.assert_close(tuple(found), tuple(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("seed", range(20))
def test_any_schedule_gives_the_same(direction, seed):
    check(direction, CASE, seed)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_batch_tiles_do_not_wait_for_each_other(direction):
    check(direction, SIX, 0)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_batch_in_several_launches(direction, monkeypatch):
    monkeypatch.setattr(choose.Plan, "waves", lambda self, tiles: [(first, 1) for first in range(tiles)])
    check(direction, replace(SIX, B=65, H=9), 0)  # more than the largest tile has


def check_both(direction, seed):
    """Two launches whose programs run together, as those of both directions of a layer do."""
    case = replace(CASE, T=2)
    given = [(forward_inputs if direction == "forward" else backward_inputs)(case) for _ in range(2)]
    with concurrently(seed, launches=2):
        found = [getattr(launch, direction)(*inputs) for inputs in given]
    for inputs, results in zip(given, found, strict=True):
        wanted = getattr(reference, direction)(*inputs)
        torch.testing.assert_close(tuple(results), tuple(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("seed", range(2))
def test_two_launches_do_not_disturb_each_other(direction, seed):
    check_both(direction, seed)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_counters_that_two_launches_share_are_found(direction, monkeypatch):
    shared = torch.zeros(100, dtype=torch.int32)
    monkeypatch.setattr(cooperative, "zero_counters", lambda like, number: shared)
    monkeypatch.setattr("concurrently.SWITCHES", 3000)
    with pytest.raises((Race, Deadlock, AssertionError)):
        check_both(direction, 0)
    scratch.timed_out(torch.device("cpu"))


@pytest.mark.parametrize("seed", range(3))
def test_the_sums_of_resident_programs(seed, monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", "resident")
    check("backward", SIX, seed)


# The sums are made by the last program of several, which must be the last and see what the others stored.
SUM_FAULTS = {
    "relaxed": ('sem="acq_rel"', 'sem="relaxed"'),
    "not_released": ('sem="acq_rel"', 'sem="acquire"'),
    "not_acquired": ('sem="acq_rel"', 'sem="release"'),
    "before_the_last": ("== tiles - 1", ">= tiles - 2"),
}


@pytest.mark.parametrize("kernel", ["resident", "cooperative"])
@pytest.mark.parametrize("fault", SUM_FAULTS)
def test_a_sum_too_early_is_found(kernel, fault, monkeypatch, tmp_path):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", kernel)
    broken = planted(sums, *SUM_FAULTS[fault], tmp_path)
    module = {"resident": resident, "cooperative": cooperative}[kernel]
    monkeypatch.setattr(module, "finish", broken.finish)

    def run():
        for seed in range(5):
            check("backward", replace(SIX, T=1, H=5), seed)

    with pytest.raises(Race):
        run()


@pytest.mark.parametrize(
    ("direction", "fault"),
    [(d, f) for d in ("forward", "backward") for f in FAULTS] + [("forward", f) for f in FORWARD_FAULTS],
)
def test_a_broken_barrier_is_found(direction, fault, monkeypatch, tmp_path):
    old, new, error = (FAULTS | FORWARD_FAULTS)[fault]
    module = planted(cooperative, old, new, tmp_path)
    name = f"lstm_{direction}_cooperative_kernel"
    monkeypatch.setattr(cooperative, name, getattr(module, name))
    monkeypatch.setattr("concurrently.SWITCHES", 3000)

    def run():
        for seed in range(5):
            check(direction, CASE, seed)

    with pytest.raises(error):
        run()
    scratch.timed_out(torch.device("cpu"))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_stores_come_late_where_nothing_releases_them(direction, monkeypatch, tmp_path):
    # With nobody watching for races, a wrong order shows in the numbers alone.
    for name in ("load", "store"):
        monkeypatch.setattr(Launch, name, lambda *_: None)
    module = planted(cooperative, *FAULTS["relaxed_arrive"][:2], tmp_path)
    name = f"lstm_{direction}_cooperative_kernel"
    monkeypatch.setattr(cooperative, name, getattr(module, name))

    def run():
        for seed in range(5):
            check(direction, CASE, seed)

    with pytest.raises(AssertionError, match="not close"):
        run()
