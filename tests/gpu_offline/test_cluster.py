"""The compiled cluster kernel against the reference, run instruction by instruction, and with faults."""

import sys
from dataclasses import replace

import pytest
import torch

triton = pytest.importorskip("triton")

from builds import CARDS  # noqa: E402
from cases import Case  # noqa: E402
from launches import NOTHING, TOLERANCE, Launcher, forward  # noqa: E402
from lstm_fused.kernels import cluster, cluster_exchange, cluster_forward  # noqa: E402
from lstm_fused.kernels.choose import Layer, choose, why_not  # noqa: E402
from planting import planted  # noqa: E402
from ptx import Fault  # noqa: E402

H100 = CARDS[1]
# Two batch tiles, and padding columns; so many steps that each barrier has every phase twice.
ODD = Case("odd", T=8, B=11, I=3, H=40)
UNEVEN = replace(ODD, name="uneven", lengths=(8, 5, 4, 3, 2, 1, 0, 7, 6, 3, 0), reverse=True)
WIDE = replace(ODD, name="wide", T=3, H=200)  # two warps of a block on each part of a multiprocessor


def launcher(kind, case, **options):
    uneven = case.lengths is not None
    return Launcher(H100, "cluster", "forward", kind, case.H, uneven=uneven, **options)


@pytest.mark.parametrize("case", [ODD, UNEVEN, WIDE], ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["fp16", "bf16", "tf32"])
def test_compiled_code_gives_what_the_reference_gives(kind, case):
    launch = launcher(kind, case)
    found, wanted = forward(launch, "cluster", kind, case)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])
    assert not launch.timed_out


def test_tiles_of_sixteen_rows():
    case = replace(ODD, T=3, B=19)
    tiles = choose(Layer("forward", case.H, 240, torch.float16, "ieee"), H100, "cluster")
    found, wanted = forward(launcher("fp16", case, tiles=tiles), "cluster", "fp16", case)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE["fp16"], atol=TOLERANCE["fp16"])


def test_a_cluster_of_sixteen_blocks():
    case = Case("widest", T=3, B=3, I=3, H=500)
    launch = launcher("fp16", case)
    assert launch.program.cluster == 16
    found, wanted = forward(launch, "cluster", "fp16", case)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE["fp16"], atol=TOLERANCE["fp16"])


def goes_wrong(launch, case=ODD):
    try:
        found, wanted = forward(launch, "cluster", "fp16", case)
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


def broken(fault, tmp_path, monkeypatch):
    """The kernel with a fault in the exchange; waits time out soon."""
    module = planted(cluster_exchange, "1 << 20", "1024", tmp_path, "broken_exchange")
    module = planted(module, *fault, tmp_path, "broken_exchange")
    monkeypatch.setitem(sys.modules, "broken_exchange", module)
    rename = "lstm_fused.kernels.cluster_exchange", "broken_exchange"
    return planted(cluster_forward, *rename, tmp_path, "broken_forward")


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_broken_exchange_is_found(tmp_path, monkeypatch, fault):
    function = broken(FAULTS[fault], tmp_path, monkeypatch).lstm_forward_cluster_kernel
    assert any(goes_wrong(launcher("fp16", ODD, function=function, seed=seed)) for seed in range(8))


def test_stores_after_the_last_step_are_found(tmp_path):
    module = planted(cluster_forward, "if step + 1 < T:", "if step < T:", tmp_path)
    function = module.lstm_forward_cluster_kernel
    assert any(goes_wrong(launcher("fp16", ODD, function=function, seed=seed)) for seed in range(8))


def test_each_barrier_is_missed_when_it_is_left_out():
    whole = launcher("fp16", ODD)
    assert not goes_wrong(whole) and whole.barriers
    for barrier in whole.barriers:
        launch = launcher("fp16", ODD, left_out=barrier)
        assert launch.program.instructions[barrier] == NOTHING
        assert goes_wrong(launch) == (barrier in whole.machine.needed)
    assert whole.machine.needed


def test_a_choice_takes_it_by_name_only():
    layer = Layer("forward", 256, 16, torch.float16, "ieee")
    assert choose(layer, H100).kernel != "cluster"
    assert choose(layer, H100, "cluster").CTAS == 8
    assert choose(layer._replace(direction="backward"), H100, "cluster").kernel == "persistent"
    for refused, card in (
        (layer._replace(H=513), H100),
        (layer._replace(dtype=torch.float64), H100),
        (layer._replace(P=8), H100),
        (layer, CARDS[0]),
    ):
        with pytest.raises(RuntimeError, match="cannot run"):
            choose(refused, card, "cluster")


@pytest.mark.parametrize(("B", "rows"), [(16, 8), (64, 8), (240, 16)])
def test_few_waves_of_clusters_come_first(B, rows):
    plan = choose(Layer("forward", 256, B, torch.float16, "ieee"), H100, "cluster")
    assert rows == plan.BB


def test_a_variant_is_refused():
    layer = Layer("forward", 64, 16, torch.float16, "ieee", varied=True)
    assert why_not(next(cluster.plans(layer)), layer, H100)
