"""Programs that contain the operators: compiled with transforms inside, exported, traced."""

import pytest
import torch
from harness import ENGINES_HERE
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from lstm_fused import LSTM, LSTMCell
from lstm_fused.autograd.operators import backward_op, forward_op

F64 = torch.float64
each_engine = pytest.mark.parametrize("engine", [engine.name for engine in ENGINES_HERE])
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # raised by Dynamo
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:FutureWarning"),  # torch 2.15
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def scalar_slope(f):
    return lambda x: vjp(f, x)[1](torch.ones((), dtype=F64))[0]


def along_ones(f):
    return lambda x: jvp(f, (x,), (torch.ones_like(x),))[1]


TRANSFORMS = {
    "grad": grad,
    "vjp": scalar_slope,
    "jvp": along_ones,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "reverse_over_reverse": lambda f: grad(lambda x: grad(f)(x).sin().sum()),
    "vmap": lambda f: lambda x: vmap(f)(torch.stack([x, 2 * x])),
    "per_sample": lambda f: lambda x: vmap(grad(f))(torch.stack([x, 2 * x])),
}


class Net(nn.Module):
    """A model with layers before and after the LSTM, so that gradients pass through it."""

    def __init__(self, lstm):
        super().__init__()
        self.before, self.lstm = nn.Linear(3, 3, dtype=F64), lstm

    def forward(self, x, lengths=None):
        y, (h_n, c_n) = self.lstm(self.before(x), lengths=lengths)
        return y.sin().sum() + h_n.cos().sum() + c_n.square().sum()


def make(engine, **options):
    torch.manual_seed(0)
    torch._dynamo.reset()
    return Net(LSTM(3, 4, dtype=F64, engine=engine, **options).eval()), torch.randn(4, 2, 3, dtype=F64)


def gradients(module, *given):
    """Return the gradients of every parameter and the input."""
    x, *more = given
    x = x.clone().requires_grad_()
    return torch.autograd.grad(module(x, *more), [x, *module.parameters()])


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_inside_a_compiled_function(transform):
    net, x = make(ENGINES_HERE[0].name, zoneout_c=0.3)
    expected = transform(net)(x)
    assert expected.abs().max() > 1e-3
    close(torch.compile(transform(net), backend="aot_eager", fullgraph=True)(x), expected)


@each_engine
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}], ids=["one", "deep"]
)
def test_gradients_of_parameters_inside_a_compiled_function(engine, options):
    net, x = make(engine, **options)
    parameters, lengths = {n: p.detach() for n, p in net.named_parameters()}, torch.tensor([4, 2])
    slopes = grad(lambda p, x: functional_call(net, p, (x, lengths)))
    close(torch.compile(slopes, backend="aot_eager", fullgraph=True)(parameters, x), slopes(parameters, x))


def test_forward_over_forward_mode_inside_a_compiled_function_is_right_or_an_error():
    net, x = make(ENGINES_HERE[0].name)
    twice = along_ones(along_ones(net))
    try:
        found = torch.compile(twice, backend="aot_eager", fullgraph=True)(x)
    except torch._dynamo.exc.TorchRuntimeError:
        return  # PyTorch 2.13 lacks a rule for products of tangents of different levels
    close(found, twice(x))


def test_an_ensemble_inside_a_compiled_function():
    net, x = make(ENGINES_HERE[0].name)
    stacked = {n: torch.stack([p.detach(), 2 * p.detach()]) for n, p in net.named_parameters()}
    each = vmap(lambda p: functional_call(net, p, (x,)))
    close(torch.compile(each, backend="aot_eager", fullgraph=True)(stacked), each(stacked))


@each_engine
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no_grad"])
def test_an_exported_program_trains(engine, recording):
    net, x = make(engine, num_layers=2, bidirectional=True)
    with torch.set_grad_enabled(recording):
        program = torch.export.export(net, (x, torch.tensor([4, 2]))).module()
    given = torch.randn_like(x), torch.tensor([1, 3])
    found = dict(
        zip(["x", *(n for n, _ in program.named_parameters())], gradients(program, *given), strict=True)
    )
    expected = dict(zip(["x", *(n for n, _ in net.named_parameters())], gradients(net, *given), strict=True))
    close(found, expected)
    torch.compile(program, backend="aot_eager")(given[0], given[1]).backward()
    for name, p in program.named_parameters():
        close(p.grad, expected[name])


@each_engine
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no_grad"])
def test_a_traced_program_trains(engine, recording, tmp_path):
    net, x = make(engine, bidirectional=True)
    with torch.set_grad_enabled(recording):
        traced = torch.jit.trace(net, (x,))
    torch.jit.save(traced, tmp_path / "traced.pt")
    other = torch.randn_like(x)
    for program in (traced, torch.jit.load(tmp_path / "traced.pt")):
        found = dict(
            zip(["x", *(n for n, _ in program.named_parameters())], gradients(program, other), strict=True)
        )
        close(
            found,
            dict(zip(["x", *(n for n, _ in net.named_parameters())], gradients(net, other), strict=True)),
        )


@each_engine
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 2}], ids=["one", "deep"])
def test_outputs_changed_in_place_inside_a_compiled_function(engine, options):
    net, x = make(engine, **options)

    def changed(x):
        return net.lstm(x)[0].mul_(2).relu_().square().sum()

    compiled = torch.compile(changed, backend="aot_eager", fullgraph=True)
    slopes = [torch.autograd.grad(f(x), list(net.lstm.parameters())) for f in (compiled, changed)]
    close(*slopes)


@each_engine
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no_grad"])
def test_programs_of_a_layer_norm(engine, recording):
    net, x = make(engine, layer_norm=True)
    with torch.set_grad_enabled(recording):
        programs = torch.jit.trace(net, (x,)), torch.export.export(net, (x,)).module()
    for program in programs:
        close(gradients(program, 2 * x), gradients(net, 2 * x))


@each_engine
def test_a_compiled_cell_trains_in_a_loop(engine):
    torch._dynamo.reset()
    cell, x = LSTMCell(3, 4, dtype=F64, engine=engine), torch.randn(3, 2, 3, dtype=F64)

    def loss(x):
        hx = None
        for x_t in x:
            hx = cell(x_t, hx)
        return hx[0].sin().sum()

    found = torch.compile(grad(loss), backend="aot_eager", fullgraph=True)(x)
    close(found, grad(loss)(x))


def arguments(x):
    """Return the arguments of the forward operator as a program contains them."""
    return x, *(torch.randn(12, n, dtype=F64) for n in (2, 3)), *[None] * 4, *torch.randn(2, 2, 3, dtype=F64)


@each_engine
def test_the_forward_operator_is_differentiable(engine):
    x = torch.randn(4, 2, 2, dtype=F64)
    given = arguments(x)[1:]

    def y(x, save=False):
        return forward_op[engine](x, *given, None, False, save)[0]

    assert torch.autograd.gradcheck(y, (x.clone().requires_grad_(),), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(y, (x.clone().requires_grad_(),))
    expected = torch.autograd.functional.jacobian(y, x)
    for found in (
        jacrev(y)(x),
        jacfwd(y)(x),
        vmap(lambda v: vjp(y, x)[1](v)[0])(torch.eye(24, dtype=F64).view(-1, 4, 2, 3)).view_as(expected),
    ):
        close(found, expected)
    close(jacfwd(jacfwd(lambda x: y(x).sin().sum()))(x), hessian(lambda x: y(x).sin().sum())(x))
    for save in (False, True):
        outputs = forward_op[engine](x.clone().requires_grad_(), *given, None, False, save)
        assert [o.requires_grad for o in outputs] == [True] * 3 + [False] * 2
        assert [o.numel() > 0 for o in outputs[3:]] == [save] * 2


@each_engine
def test_the_backward_operator_refuses_to_be_differentiated(engine):
    given = arguments(torch.randn(4, 2, 2, dtype=F64))
    y, _, _, c, gates = forward_op[engine](*given, None, False, True)
    dy = torch.ones_like(y, requires_grad=True)
    saved = None, None, c, gates, given[-1], given[2], None, None, None, False
    dxw = backward_op[engine](dy, *saved)[0]
    with pytest.raises(RuntimeError, match="_backward has no derivative"):
        dxw.sum().backward()
    with pytest.raises(RuntimeError, match="_backward cannot be transformed"):
        jvp(lambda dy: backward_op[engine](dy, *saved)[0], (dy.detach(),), (y,))
