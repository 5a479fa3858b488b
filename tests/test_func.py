"""Forward mode, torch.func and higher derivatives, compared with plain reverse mode."""

from dataclasses import replace

import pytest
import torch
from cases import EVERY_VARIANT, PLAIN, Case, make_tensors
from harness import ENGINES_HERE, call
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_fused import LSTM, reference
from lstm_fused.contract import Inputs

ALL = [engine.name for engine in ENGINES_HERE]
F64 = torch.float64
BUSY = Case("busy", T=3, B=3, I=2, H=3, P=2, lengths=(2, 0, 3), reverse=True)
VARIED = replace(EVERY_VARIANT, T=3, B=3, I=2, H=3, P=2, lengths=(2, 0, 3), reverse=True)
SMALL = [
    Case("plain", T=3, B=2, I=2, H=3),
    Case("bare", T=2, B=2, I=2, H=2, bias=False, peephole=False),
    BUSY,
]


class Runs(TorchDispatchMode):
    """Counts calls of our operators."""

    def __init__(self):
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.forward += "lstm_fused" in str(function) and "forward" in str(function)
        self.backward += "lstm_fused" in str(function) and any(
            n in str(function) for n in ("backward", "gradients")
        )
        return function(*args, **(kwargs or {}))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def module(engine, **options):
    torch.manual_seed(0)
    return LSTM(2, 3, dtype=F64, engine=engine, **options)


def weighted(y, h_n, c_n):
    """Return a loss of all outputs and states."""
    return y.sin().sum() + (h_n * h_n).sum() + c_n.cos().sum()


def loss_of(lstm, **given):
    """Return the loss as a function of the parameters and a batch or sequence."""

    def loss(parameters, x, **more):
        y, states = functional_call(lstm, parameters, (x,), given | more)
        return weighted(y, *states)

    return loss


def parameters_of(lstm):
    return {name: p.detach() for name, p in lstm.named_parameters()}


def gradients(loss, parameters, *args, **more):
    """Return gradients by plain reverse mode, which tests/test_engines.py compares with the oracle."""
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    found = torch.autograd.grad(loss(leaves, *args, **more), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def stacked(dicts):
    return {name: torch.stack([d[name] for d in dicts]) for name in dicts[0]}


OPTIONS = [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}, {"bias": False, "peephole": False}]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=["plain", "busy", "bare"])
each_engine = pytest.mark.parametrize("engine", ALL)


@each_engine
@pytest.mark.parametrize("case", [*SMALL, VARIED], ids=lambda c: c.name)
def test_gradcheck_in_every_mode(engine, case):
    tensors = make_tensors(case, F64)
    names = [n for n, t in tensors.items() if t is not None]
    leaves = [tensors[n].requires_grad_() for n in names]

    def function(*leaves):
        return call(engine, case, tensors | dict(zip(names, leaves, strict=True)))

    assert gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True, fast_mode=True)


@each_engine
def test_vmap_runs_the_engine_once(engine):
    lstm, x = module(engine), torch.randn(5, 4, 3, 2, dtype=F64)
    hx = torch.randn(1, 3, 3, dtype=F64), torch.randn(5, 1, 3, 3, dtype=F64)
    with Runs() as runs:
        y, (h_n, c_n) = vmap(lambda x, c0: lstm(x, (hx[0], c0)))(x, hx[1])
    assert runs.forward == 1
    for n in range(5):
        one, (h, c) = lstm(x[n], (hx[0], hx[1][n]))
        close(y[n], one)
        close(h_n[n], h)
        close(c_n[n], c)
    along_features = vmap(lambda x: lstm(x)[0], in_dims=3, out_dims=3)(x.movedim(0, 3))
    close(along_features[..., 2], lstm(x[2])[0])


@each_engine
@each_option
def test_per_sample_gradients(engine, options):
    lstm = module(engine, **options)
    loss, parameters = loss_of(lstm), parameters_of(lstm)
    x = torch.randn(5, 4, 2, dtype=F64)
    with Runs() as runs:
        found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    close(found, stacked([gradients(loss, parameters, one) for one in x]))
    assert runs.forward == runs.backward == lstm.num_layers * lstm.num_directions


@each_engine
def test_per_sample_gradients_with_lengths(engine):
    lstm = module(engine, bidirectional=True)
    loss, parameters = loss_of(lstm), parameters_of(lstm)
    x, lengths = torch.randn(4, 5, 1, 2, dtype=F64), torch.tensor([[3], [0], [5], [1]])

    def of_one(parameters, x, length):
        return loss(parameters, x, lengths=length)

    found = vmap(grad(of_one), in_dims=(None, 0, 0))(parameters, x, lengths)
    alone = [gradients(of_one, parameters, *one) for one in zip(x, lengths, strict=True)]
    close(found, stacked(alone))


@each_engine
@each_option
def test_ensembles(engine, options):
    members = [module(engine, **options) for _ in range(3)]
    for n, member in enumerate(members):
        for parameter in member.parameters():
            nn.init.uniform_(parameter, -n - 1, n + 1)
    parameters, buffers = stack_module_state(members)
    loss, x = loss_of(members[0]), torch.randn(4, 3, 2, dtype=F64)
    each = [parameters_of(member) for member in members]
    parameters = {name: p.detach() for name, p in parameters.items()}
    assert not buffers
    close(vmap(loss, (0, None))(parameters, x), torch.stack([loss(one, x) for one in each]))
    found = vmap(grad(loss), (0, None))(parameters, x)
    close(found, stacked([gradients(loss, one, x) for one in each]))


@each_engine
def test_gradient_of_a_vmapped_loss(engine):
    lstm = module(engine, num_layers=2)
    loss, parameters = loss_of(lstm), parameters_of(lstm)
    x = torch.randn(5, 4, 2, dtype=F64)

    def total(parameters, x):
        return vmap(loss, (None, 0))(parameters, x).sum()

    with Runs() as runs:
        found = grad(total)(parameters, x)
    assert runs.forward == runs.backward == 2
    close(found, gradients(lambda p, x: sum(loss(p, one) for one in x), parameters, x))


@each_engine
@each_option
def test_forward_mode_by_func_and_by_dual_numbers(engine, options):
    lstm = module(engine, **options)
    loss, parameters = loss_of(lstm), parameters_of(lstm)
    x = torch.randn(4, 3, 2, dtype=F64)
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    slopes = gradients(loss, parameters, x)
    expected = sum((slopes[name] * tangent).sum() for name, tangent in tangents.items())
    value, found = jvp(lambda p: loss(p, x), (parameters,), (tangents,))
    close(value, loss(parameters, x))
    close(found, expected)
    with forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(p, tangents[name]) for name, p in parameters.items()}
        close(forward_ad.unpack_dual(loss(dual, x)).tangent, expected)


@each_engine
def test_jacobians_agree(engine):
    lstm, x = module(engine, bidirectional=True), torch.randn(3, 2, dtype=F64)
    loss, parameters = loss_of(lstm), parameters_of(lstm)

    def outputs(parameters, x):
        y, (_, c_n) = functional_call(lstm, parameters, (x,))
        return y, c_n

    by_reverse = jacrev(outputs, argnums=(0, 1))(parameters, x)
    close(jacfwd(outputs, argnums=(0, 1))(parameters, x), by_reverse)
    x.requires_grad_()
    for index in ((0, 1), (2, 5)):
        close(by_reverse[0][1][index], torch.autograd.grad(outputs(parameters, x)[0][index], x)[0])
    assert loss(parameters, x).requires_grad


@each_engine
@pytest.mark.parametrize("options", OPTIONS[:2], ids=["plain", "busy"])
def test_hessians_agree(engine, options):
    lstm, x = module(engine, **options), torch.randn(3, 2, 2, dtype=F64)
    loss, parameters = loss_of(lstm, lengths=torch.tensor([2, 3])), parameters_of(lstm)
    name = "weight_peephole_l0"

    def of_peephole(p, x):
        return loss(parameters | {name: p}, x)

    p = parameters[name]
    expected = torch.autograd.functional.hessian(lambda p: of_peephole(p, x), p)
    assert expected.abs().max() > 1e-3
    close(hessian(of_peephole)(p, x), expected)
    close(jacrev(jacrev(of_peephole))(p, x), expected)
    close(jacrev(jacfwd(of_peephole))(p, x), expected)
    batch = torch.stack([x, 2 * x])
    per_sample = vmap(hessian(of_peephole), (None, 0))(p, batch)
    close(per_sample[0], expected)


@each_engine
def test_learning_to_learn(engine):
    """Differentiate through one step of gradient descent per task."""
    lstm = module(engine)
    loss, parameters = loss_of(lstm), parameters_of(lstm)
    tasks = torch.randn(3, 4, 2, 2, dtype=F64)

    def after_a_step(step, parameters, task):
        slopes = step(loss)(parameters, task)
        return loss({name: p - 0.1 * slopes[name] for name, p in parameters.items()}, task)

    def by_vmap(parameters):
        return vmap(lambda task: after_a_step(grad, parameters, task))(tasks).sum()

    def plainly(loss):
        def slopes(parameters, task):
            found = torch.autograd.grad(loss(parameters, task), list(parameters.values()), create_graph=True)
            return dict(zip(parameters, found, strict=True))

        return slopes

    expected = gradients(lambda p: sum(after_a_step(plainly, p, task) for task in tasks), parameters)
    close(grad(by_vmap)(parameters), expected)


@each_engine
def test_third_derivatives(engine):
    case = replace(PLAIN, T=3, B=2, I=2, H=3, lengths=(3, 2))
    found = []
    for run in (lambda t: call(engine, case, t), plain_reference):
        tensors = make_tensors(case, F64)
        p = tensors["peephole"].requires_grad_()
        value = weighted(*run(tensors))
        for _ in range(3):
            value = torch.autograd.grad(value.sin().sum(), p, create_graph=True)[0]
        found.append(value)
    assert found[0].abs().max() > 1e-6
    close(*found)


def plain_reference(t):
    """Call the reference without an autograd Function: PyTorch differentiates it to any order."""
    lengths = torch.tensor([3, 2])
    weights = (*(t[n] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole")), None)
    return reference.forward(Inputs(t["x"], *weights, t["h0"], t["c0"], lengths, False, False))[:3]
