"""Compiles a sample of the kernels for cards that are not here; `make gpu-compile` compiles all of them."""

import itertools
import json
from dataclasses import replace

import pytest

triton = pytest.importorskip("triton")

from builds import BATCHES, CARDS, SPILLS, Build, compile_kernel, layers, matrix  # noqa: E402
from compiled import RESOURCES, differs, measure  # noqa: E402
from lstm_fused.kernels import choose, cooperative, persistent_forward, product, resident, variant  # noqa: E402
from machine_code import faults, resources  # noqa: E402
from planting import planted  # noqa: E402

A100, H100, B200, RTX4090, MI300X = CARDS
SAMPLE = (
    Build("step", "forward", "bf16", 256, H100),
    Build("step", "forward", "tf32", 512, H100),
    Build("step", "backward", "fp64", 64, A100),
    Build("resident", "forward", "fp16", 128, A100),
    Build("resident", "backward", "tf32", 64, B200),
    Build("cooperative", "forward", "fp16", 768, H100),
    Build("cooperative", "backward", "fp16", 256, H100),
    Build("cooperative", "forward", "bf16", 256, MI300X),
    Build("persistent", "forward", "fp16", 768, H100),
    Build("persistent", "backward", "fp16", 256, A100),
    Build("persistent", "backward", "fp16", 650, A100),
    Build("persistent", "backward", "fp16", 650, H100),
    Build("persistent", "forward", "fp16", 128, H100, B=256, streams=2),
    Build("persistent", "forward", "fp16", 1024, H100, B=64),
    Build("persistent", "backward", "fp16", 768, H100, B=64),  # two tiles in turn
    Build("step", "forward", "fp16", 512, RTX4090, B=64),
    Build("step", "backward", "tf32", 128, RTX4090),
    Build("step", "backward", "fp64", 64, RTX4090),
    Build("resident", "forward", "tf32", 64, RTX4090),
    Build("cooperative", "forward", "fp16", 512, RTX4090, B=64),
    Build("persistent", "backward", "fp16", 650, RTX4090),
)
RTX3090 = RTX4090._replace(name="RTX 3090", capability="sm_86", sms=82)  # not in resources.json
ON_SM_86 = (
    Build("step", "forward", "fp16", 512, RTX3090, B=256),
    Build("step", "backward", "tf32", 128, RTX3090),
    Build("cooperative", "forward", "fp16", 512, RTX3090, streams=2),
    Build("persistent", "backward", "fp16", 650, RTX3090),
)
# PyTorch's default precision, and float64 by multiply-adds.
OWN_PRECISION = (
    Build("cooperative", "forward", "fp32", 512, A100),
    Build("cooperative", "forward", "fp32", 512, H100),
    Build("cooperative", "backward", "fp32", 512, H100),
    Build("resident", "backward", "fp32", 64, H100),
    Build("resident", "backward", "fp64", 32, RTX4090),
)
# Whose fastest plan, or the next, is refused.
REFUSED = (
    Build("step", "forward", "fp16", 512, RTX4090, B=256),
    Build("step", "backward", "tf32", 128, RTX4090),
    Build("resident", "forward", "fp64", 32, RTX4090),
    Build("cooperative", "forward", "fp16", 512, RTX4090, B=64),
    Build("cooperative", "backward", "bf16", 768, RTX4090),
    Build("persistent", "forward", "fp16", 512, H100, B=64),
    Build("cooperative", "forward", "fp64", 128, A100),
    Build("cooperative", "backward", "tf32", 64, A100),
)


# Between the sizes of resources.json, where larger tiles once spilled; with lengths, and in reverse.
BETWEEN = (
    Build("persistent", "backward", "fp16", 384, H100, B=256),
    Build("persistent", "backward", "fp16", 447, H100, B=128),
    Build("persistent", "backward", "fp16", 575, H100, B=64),
    Build("persistent", "backward", "fp16", 640, H100, B=128),
    Build("persistent", "backward", "tf32", 320, H100, B=128),
)


@pytest.mark.parametrize("build", BETWEEN, ids=lambda b: b.name)
def test_no_plan_between_them_spills(build):
    assert not resources(compile_kernel(build, uneven=True)).spilled


@pytest.mark.parametrize("build", SAMPLE, ids=lambda b: b.name)
def test_compiles_to_the_known_resources(build):
    row, wrong = measure(build)
    assert not wrong
    assert not differs(row, json.loads(RESOURCES.read_text()).get(build.name), build.card.capability)


def test_with_padded_columns_no_chosen_plan_spills():
    rows = {name: row for name, row in json.loads(RESOURCES.read_text()).items() if " H=650 " in name}
    assert {name.split()[1] for name in rows} == {"forward", "backward"}
    for name, row in rows.items():
        assert not row["spilled"] and not row["mix"]["spill"], name


def test_the_largest_padded_tile_does_not_spill():  # which is not in resources.json
    _, wrong = measure(Build("persistent", "backward", "fp16", 578, H100, B=64))
    assert not wrong


@pytest.mark.parametrize("build", ON_SM_86, ids=lambda b: b.name)
def test_compiles_for_sm_86(build):
    _, wrong = measure(build)
    assert not wrong


@pytest.mark.parametrize("build", OWN_PRECISION, ids=lambda b: b.name)
def test_products_without_tensor_cores_compile(build):
    _, wrong = measure(build)
    assert not wrong


def test_multiply_adds_are_fused_whatever_the_default_of_triton_is(monkeypatch):
    """From 3.10 on the default is not to."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    build = Build("step", "backward", "fp64", 64, A100)
    for function in (None, variant.lstm_norm_step_kernel):
        assert "fma.rn.f64" in compile_kernel(build, function, varied=True).asm["ptx"]


@pytest.mark.parametrize("kind", ["bf16", "fp64"])
def test_every_variant_compiles(kind):
    for direction, functions in {
        "forward": (None, product.lstm_recurrent_step_kernel, product.lstm_projection_step_kernel),
        "backward": (None, product.lstm_gradient_step_kernel, variant.lstm_norm_step_kernel),
    }.items():
        for function, projected in itertools.product(functions, (False, True)):
            if function in (product.lstm_projection_step_kernel, product.lstm_gradient_step_kernel):
                projected = True
            build = Build("step", direction, kind, 64, H100, P=32 * projected)
            found = resources(compile_kernel(build, function, varied=True, projected=projected))
            assert not found.spilled and not found.mix.get("spill"), (direction, function)


def test_the_known_resources_are_complete():
    assert list(json.loads(RESOURCES.read_text())) == [build.name for build in matrix()]


def test_the_known_resources_serve_every_batch():
    served = {other.name for build in matrix() for other in build.batches()}
    every = [
        replace(layer, B=B, streams=streams)
        for layer, B, streams in itertools.product(layers(), BATCHES, (1, 2))
    ]
    assert served == {build.name for build in every if build.plan() is not None}


def test_spills_are_found():
    build = SAMPLE[6]
    tight = replace(build, tiles=replace(build.plan(), maxnreg=40))
    _, wrong = measure(tight)
    assert any(fault.startswith("spills") for fault in wrong)


@pytest.mark.parametrize("build", REFUSED, ids=lambda b: b.name)
def test_what_is_refused_for_spills_spills(build):
    every = choose.plans(build.kernel, build.layer)
    refused = [plan for plan in every if choose.why_not(plan, build.layer, build.card) == [SPILLS]]
    _, wrong = measure(replace(build, tiles=refused[0]))
    assert any(fault.startswith("spills") for fault in wrong)


def test_programs_that_are_not_on_the_card_at_once_are_found(monkeypatch):
    monkeypatch.setattr(choose, "tiles_at_once", lambda *_: 1)  # the launcher believes that they are
    build = replace(SAMPLE[5], card=H100._replace(sms=60))  # 96 fit, those of two launches do not
    compiled = compile_kernel(build)
    assert faults(build, compiled, resources(compiled)) == ["192 programs are not on the card at once"]


def test_a_release_without_a_barrier_is_found(tmp_path):
    build = SAMPLE[6]
    module = planted(cooperative, "    tl.debug_barrier()\n", "", tmp_path)
    compiled = compile_kernel(build, module.lstm_backward_cooperative_kernel)
    assert faults(build, compiled, resources(compiled)) == [
        "a release with stores before it and no barrier between"
    ]


def test_weights_loaded_in_the_time_loop_are_found(tmp_path):
    build = SAMPLE[4]
    load = "    w_o = tl.load(w + 3 * H * H, w_mask, other=0)\n"
    before_the_dot = "        dh_prev = add_dot(da_o.to(KIND), w_o,"
    with open(resident.__file__) as file:
        backward = file.read().index("def lstm_backward")
    assert backward
    module = planted(resident, before_the_dot, "    " + load + before_the_dot, tmp_path)
    compiled = compile_kernel(build, module.lstm_backward_resident_kernel)
    assert any("in the time loop" in fault for fault in faults(build, compiled, resources(compiled)))


def test_so_they_are_in_a_persistent_kernel(tmp_path):
    held = "multiply(h_all[k], weights[first_k + k],"
    loaded = "multiply(h_all[k], gl.load(w_at + (first_k + k) * BK, (unit < H) & (ks < H), other=0),"
    module = planted(persistent_forward, held, loaded, tmp_path)
    build = Build("persistent", "forward", "fp16", 128, H100)
    compiled = compile_kernel(build, module.lstm_forward_persistent_kernel)
    assert any("in the time loop" in fault for fault in faults(build, compiled, resources(compiled)))
