"""The compiled cluster kernels against the reference, run instruction by instruction, and with faults."""

import sys
from dataclasses import replace

import pytest
import torch

triton = pytest.importorskip("triton")

from builds import CARDS, matrix  # noqa: E402
from cases import Case  # noqa: E402
from launches import DIRECTIONS, NOTHING, TOLERANCE, Launcher, backward_inputs  # noqa: E402
from lstm_fused.kernels import cluster, cluster_backward, cluster_exchange, cluster_forward  # noqa: E402
from lstm_fused.kernels.choose import Layer, choose, why_not  # noqa: E402
from lstm_fused.kernels.exchange import POLLS  # noqa: E402
from planting import planted  # noqa: E402
from ptx import Fault  # noqa: E402

from bench.check import relative_error  # noqa: E402
from lstm_fused import reference  # noqa: E402

H100 = CARDS[1]
# Two batch tiles, and padding columns; so many steps that each barrier has every phase twice.
ODD = Case("odd", T=8, B=11, I=3, H=40)
UNEVEN = replace(ODD, name="uneven", lengths=(8, 5, 4, 3, 2, 1, 0, 7, 6, 3, 0), reverse=True)
WIDE = replace(ODD, name="wide", T=3, H=200)  # two warps of a block on each part of a multiprocessor


BARE = replace(ODD, name="bare", T=3, peephole=False, bias=False)
MODULES = {"forward": cluster_forward, "backward": cluster_backward}
both = pytest.mark.parametrize("direction", list(DIRECTIONS))


def launcher(direction, kind, case, module=None, **options):
    function = module and getattr(module, f"lstm_{direction}_cluster_kernel")
    options |= {"function": function, "uneven": case.lengths is not None}
    options["absent"] = tuple(name for name in ("peephole", "bias") if not getattr(case, name))
    return Launcher(H100, "cluster", direction, kind, case.H, **options)


def run(launch, kind, case, **changes):
    """The results of a compiled kernel, and the reference's."""
    return DIRECTIONS[launch.direction](launch, "cluster", kind, case, **changes)


@pytest.mark.parametrize("case", [ODD, UNEVEN, WIDE], ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["fp16", "bf16", "tf32"])
def test_compiled_code_gives_what_the_reference_gives(kind, case):
    launch = launcher("forward", kind, case)
    found, wanted = run(launch, kind, case)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])
    assert not launch.timed_out


def wide(record):
    return type(record)(*(t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in record))


@pytest.mark.parametrize("case", [ODD, UNEVEN, WIDE, BARE], ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["fp16", "bf16", "tf32"])
def test_backward_errors_are_at_most_twice_the_references(kind, case):
    launch = launcher("backward", kind, case)
    found, rounded = run(launch, kind, case)
    _, _, saved, douts = backward_inputs(kind, case)
    exact = reference.backward(wide(saved), wide(douts))
    errors = [
        relative_error(*several, kind == "tf32") for several in zip(found, rounded, exact, strict=False)
    ]
    print(kind, case.name, errors)
    assert max(errors) <= 2


@both
def test_tiles_of_sixteen_rows(direction):
    case = replace(ODD, T=3, B=19)
    tiles = choose(Layer(direction, case.H, 240, torch.float16, "ieee"), H100, "cluster")
    found, wanted = run(launcher(direction, "fp16", case, tiles=tiles), "fp16", case)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE["fp16"], atol=TOLERANCE["fp16"])


@both
def test_a_cluster_of_sixteen_blocks(direction):
    case = Case("widest", T=3, B=3, I=3, H=500)
    launch = launcher(direction, "fp16", case)
    assert launch.program.cluster == 16
    found, wanted = run(launch, "fp16", case)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE["fp16"], atol=TOLERANCE["fp16"])


def goes_wrong(launch, case=ODD, **options):
    try:
        found, wanted = run(launch, "fp16", case, **options)
    except Fault:
        return True
    bad = any((f - w).abs().max() > 0.02 or f.isnan().any() for f, w in zip(found, wanted, strict=True))
    return bool(launch.timed_out) or bad


# Faults in the exchange: old source, new source.
FAULTS = {
    "no_cluster_barrier": ('        "barrier.cluster.wait.acquire.aligned;",\n', ""),
    "no_fence": ('        "fence.mbarrier_init.release.cluster;",\n', ""),
    "no_wait": ("@ready bra done;", "bra done;"),
    "wrong_phase": ("(step // 2 % 2).to", "(step // 2 % 2 ^ 1).to"),
    "one_place": ("there + step % 2 * STEP", "there"),
    "another_barrier": ("ready + step % 2 * 8", "ready"),
    "wrong_rank": ("u32 $0, $1, $2;", "u32 $0, $1, 0;"),
    "too_few_bytes": ("gl.to_tensor(STEP)", "gl.to_tensor(STEP - 16)"),
    "too_many_bytes": ("gl.to_tensor(STEP)", "gl.to_tensor(STEP + 16)"),
}


# The same of its backward part, and of the backward kernel.
SUMS = {
    "a_sender_is_missing": ("for n in range(count)]", "for n in [*range(count - 1), 0]]"),
    "a_place_for_all_senders": ("tile = (sender * ", "tile = (0 * "),
}
KERNEL = {
    "places_of_one_step": (
        "product, there, ready, step, STEP)|add_up(received + step % 2 * STEP",
        "product, there - step % 2 * STEP, ready, step, STEP)|add_up(received",
    ),
    "terms_of_one_step": (" + step % 2 * TERMS", ""),
    "no_wait_after_the_last_step": ("        wait(place", "        if step + 1 < T:\n            wait(place"),
    "dh_past_a_length": ("dh = gl.where(valid, add_up(", "dh = gl.where(rows[:, None] < B, add_up("),
    "dc_past_a_length": ("dc = gl.where(valid, dc_prev, dc)", "dc = dc_prev"),
}


def broken(direction, tmp_path, monkeypatch, exchange=None, kernel=None):
    """A kernel with a fault in its own text or in the exchange; waits time out soon."""
    again = 'again_asm("[$4]")'
    sooner = f'{again}.replace("{POLLS.value}", "1024")'
    module = planted(cluster_exchange, again, sooner, tmp_path, "broken_exchange")
    if exchange is not None:
        module = planted(module, *exchange, tmp_path, "broken_exchange")
    monkeypatch.setitem(sys.modules, "broken_exchange", module)
    rename = "lstm_fused.kernels.cluster_exchange", "broken_exchange"
    module = planted(MODULES[direction], *rename, tmp_path, f"broken_{direction}")
    for old, new in zip(*(text.split("|") for text in kernel or ("", "")), strict=True):
        module = planted(module, old, new, tmp_path, f"broken_{direction}") if old else module
    return module


def found_in(direction, module, case=ODD):
    return any(goes_wrong(launcher(direction, "fp16", case, module, seed=seed), case) for seed in range(8))


@pytest.mark.parametrize("fault", list(FAULTS))
@both
def test_a_broken_exchange_is_found(tmp_path, monkeypatch, direction, fault):
    assert found_in(direction, broken(direction, tmp_path, monkeypatch, exchange=FAULTS[fault]))


@pytest.mark.parametrize("fault", [*SUMS, *KERNEL])
def test_a_broken_backward_kernel_is_found(tmp_path, monkeypatch, fault):
    module = broken("backward", tmp_path, monkeypatch, SUMS.get(fault), KERNEL.get(fault))
    assert found_in("backward", module, UNEVEN if fault.endswith("length") else ODD)


def test_stores_after_the_last_step_are_found(tmp_path, monkeypatch):
    fault = "if step + 1 < T:", "if step < T:"
    assert found_in("forward", broken("forward", tmp_path, monkeypatch, kernel=fault))


@both
def test_each_barrier_is_missed_when_it_is_left_out(direction):
    case = ODD if direction == "forward" else replace(ODD, T=2, B=3)
    whole = launcher(direction, "fp16", case)
    assert not goes_wrong(whole, case) and whole.barriers
    for barrier in whole.barriers:
        launch = launcher(direction, "fp16", case, left_out=barrier)
        assert launch.program.instructions[barrier] == NOTHING
        assert goes_wrong(launch, case) == (barrier in whole.machine.needed)
    assert whole.machine.needed


def added_up_in_order(module=None):
    """Whether dh0 has the bits of sums of two neighbours at a time, where the order of the sum matters."""
    case = Case("order", T=1, B=16, I=3, H=128)
    weight_hh, blocks = torch.zeros(4, case.H, case.H), torch.arange(8)
    scale = 2.0 ** -torch.tensor([0, 20, 7, 31, 13, 24, 3, 17])
    weight_hh[3, 16 * blocks] = scale[:, None]  # from the output gate of the first column of each block
    launch = launcher("backward", "tf32", case, module)
    (dxw, dh0, *_), _ = run(launch, "tf32", case, weight_hh=weight_hh.view(-1, case.H))
    da_o = dxw[0, :, 3 * case.H :][:, 16 * blocks]
    parts = (da_o.view(torch.int32) & -(1 << 13)).view(torch.float32) * scale  # as tensor cores read it
    while parts.shape[1] > 1:
        parts = parts[:, ::2] + parts[:, 1::2]
    return torch.equal(dh0, parts.expand_as(dh0))


def test_sums_are_added_up_in_one_order(tmp_path, monkeypatch):
    assert added_up_in_order()
    another = "for a, b in zip(numbers[::2], numbers[1::2]", "for a, b in zip(numbers[::2], numbers[::-2]"
    assert not added_up_in_order(broken("backward", tmp_path, monkeypatch, exchange=another))


def test_the_last_cluster_of_a_launch_sees_the_sums_of_the_others(tmp_path, monkeypatch):
    case = replace(ODD, T=1)

    def wrong(seeds, module=None):
        launches = (launcher("backward", "fp16", case, module, seed=seed) for seed in range(seeds))
        return any(goes_wrong(launch, case, at_once=2) for launch in launches)

    assert not wrong(2)
    assert wrong(8, broken("backward", tmp_path, monkeypatch, kernel=('sem="acq_rel"', 'sem="relaxed"')))


def test_all_shared_memory_fits_without_asking_for_more():
    """Triton asks the driver for more than 48 KB by what it declares itself, which is a part of it."""
    builds = [build for build in matrix() if build.kernel == "cluster"]
    assert {build.direction for build in builds} == set(DIRECTIONS)
    for build in builds:
        assert build.plan().shared(build.layer) <= 48 << 10, build.name


def test_a_choice_takes_it_where_it_was_faster():
    layer = Layer("forward", 256, 16, torch.float16, "ieee")
    assert choose(layer, H100).kernel == "persistent"
    assert choose(layer._replace(H=128), H100).kernel == "cluster"
    assert choose(layer._replace(direction="backward"), H100).kernel == "cluster"
    assert choose(layer._replace(direction="backward", B=128), H100).kernel == "persistent"
    assert choose(layer, H100, "cluster").CTAS == 8
    assert choose(layer._replace(direction="backward"), H100, "cluster").CTAS == 8
    for refused, card in (
        (layer._replace(H=513), H100),
        (layer._replace(dtype=torch.float64), H100),
        (layer._replace(P=8), H100),
        (layer, CARDS[0]),
    ):
        with pytest.raises(RuntimeError, match="cannot run"):
            choose(refused, card, "cluster")


def test_a_variant_is_refused():
    layer = Layer("forward", 64, 16, torch.float16, "ieee", varied=True)
    assert why_not(next(cluster.plans(layer)), layer, H100)
