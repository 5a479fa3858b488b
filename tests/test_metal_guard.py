"""Which Metal kernels run: the check before their first use, what replaces a wrong one, what is compiled."""

from functools import cache
from unittest import mock

import pytest
import torch
from lstm_fused.kernels import check, scratch
from lstm_fused.kernels.metal import launch, library
from lstm_fused.kernels.metal.plan import Plan, plans
from lstm_fused.kernels.plan import Layer
from metal import mac
from metal.mac import unchecked_mac  # noqa: F401  a fixture

import lstm_fused

CPU = torch.device("cpu")
STEP = Plan("step", 8)
close = torch.testing.assert_close

pytestmark = [
    pytest.mark.skipif(not mac.HERE, reason=mac.LACKING),
    pytest.mark.usefixtures("unchecked_mac"),
]


@pytest.fixture
def nothing_compiled(monkeypatch):
    """As at the start of a process."""
    monkeypatch.setattr(launch, "library", cache(library.library.__wrapped__))


def outcome(layer, x):
    """The output and the gradients of all parameters."""
    y = layer(x)[0]
    return y, *torch.autograd.grad(y.cos().sum(), list(layer.parameters()))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_check_ignores_the_default_device(direction):
    layer = Layer(direction, 5, 3, torch.float32, "ieee")
    scratch._flags.clear()
    with torch.device("meta"):
        for plan in plans(layer):
            found = check.check(plan, layer, CPU)
            assert found.right, found.said


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_wrong_kernel_is_replaced_with_a_warning(direction, monkeypatch, nothing_compiled):
    monkeypatch.setenv("LSTM_FUSED_GPU", "auto")
    plain = library.source
    wrong = {
        "forward": ("real m = o * ", "real m = real(1.01f) * o * "),
        "backward": ("da_g = dc", "da_g = -dc"),
    }
    monkeypatch.setattr(
        library,
        "source",
        lambda *a: plain(*a).replace(*wrong[direction], 1 if a[1].kernel == "resident" else 0),
    )
    layer, x = lstm_fused.LSTM(3, 5), torch.randn(6, 4, 3)
    with pytest.warns(RuntimeWarning, match="Metal's resident kernel was not right .* The step kernel runs"):
        found = outcome(layer, x)
    layer.engine = "reference"
    close(found, outcome(layer, x))
    layer.engine = "metal"
    with pytest.raises(RuntimeError, match="Metal's resident kernel was not right"):
        outcome(layer, x)


def test_off_runs_the_reference(monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_GPU", "off")
    monkeypatch.setattr(launch, "library", None)
    layer, x = lstm_fused.LSTM(3, 5), torch.randn(6, 4, 3)
    y = layer(x)[0]
    layer.engine = "reference"
    assert torch.equal(y, layer(x)[0])


def test_kernels_by_name(monkeypatch):
    layer, x = lstm_fused.LSTM(3, 200), torch.randn(2, 4, 3)
    for kernel, error in (
        ("resident", "takes H up to 128"),
        ("persistent", "expected one of 'resident', 'step'"),
    ):
        monkeypatch.setenv("LSTM_FUSED_KERNEL", kernel)
        with pytest.raises(RuntimeError, match=error):
            layer(x)


def test_each_plan_is_compiled_once(nothing_compiled):
    with mock.patch.object(torch.mps, "compile_shader", side_effect=torch.mps.compile_shader) as compiled:
        for H in (5, 7, 7):
            lstm_fused.LSTM(3, H)(torch.randn(2, 4, 3))[0].sum().backward()
    assert compiled.call_count == 1


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("varied", [False, True])
def test_pipelines_are_built_for_the_kernels_in_use(projection, varied, monkeypatch, nothing_compiled):
    made, compiler = [], torch.mps.compile_shader
    monkeypatch.setattr(torch.mps, "compile_shader", lambda text: made.append(compiler(text)) or made[-1])
    wanted = {
        "forward": {
            "forward_step",
            *["project_step"] * projection,
            *["recurrent_step", "norm_step"] * varied,
        },
        "backward": {"backward_step", *["gradient_step"] * projection, *["norm_backward_step"] * varied},
    }
    for direction, kernels in wanted.items():
        layer = Layer(direction, 11, 9, torch.float32, "ieee", 5 * projection, varied)
        getattr(launch, direction)(*check.problem(STEP, layer, 2, False), plan=STEP)
        assert made[0].pipelines == kernels
        made[0].pipelines.clear()
    assert len(made) == 1


def test_a_kernel_without_use_is_found(monkeypatch, nothing_compiled):
    plain = launch.forward_steps

    def wasteful(kernels, *arguments):
        kernels.project_step  # noqa: B018
        plain(kernels, *arguments)

    monkeypatch.setattr(launch, "forward_steps", wasteful)
    with pytest.raises(AssertionError, match="project_step"):
        test_pipelines_are_built_for_the_kernels_in_use(False, False, monkeypatch, None)


@pytest.mark.parametrize(
    "where",
    [f"layer.{size} {test}" for size in ("H % 8", "P % 8", "T - 1") for test in ("== 0", "!= 0")],
)
def test_a_verdict_covers_every_size_that_it_is_for(where, monkeypatch):
    """A fault in some of the sizes is found, whichever of them is checked."""
    mac.plant(monkeypatch, "real m = o * ", f"real m = ({where} ? real(2) : real(1)) * o * ")
    for H in (64, 57):
        layer = Layer("forward", H, 3, torch.float32, "ieee", P=H // 2 if "P" in where else 0)
        assert not check.check(plans(layer)[0], layer, CPU).right
