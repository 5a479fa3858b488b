"""Autograd features around a layer: checkpoints, hooks, batched gradients, in-place changes."""

import pytest
import torch
from harness import ENGINES_HERE
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.func import functional_call, grad, hessian, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import lstm_fused
from lstm_fused import LSTM, LSTMCell

F64 = torch.float64
ALL = [engine.name for engine in ENGINES_HERE]
each_engine = pytest.mark.parametrize("engine", ALL)
OPTIONS = {
    "plain": {},
    "busy": {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True},
    "variants": {"layer_norm": True, "zoneout_h": 0.2, "cell_clip": 0.5},
}
ONES = torch.ones(4, 3, dtype=F64)
OPTIONS_OF_A_LAYER = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([1, 0, 1, 1])},
    "mask": {"h_mask": 2 * ONES, "hx": (ONES, ONES)},
    "gains": {"gain_ih": torch.ones(12, dtype=F64), "gain_hh": torch.ones(12, dtype=F64)},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def make(engine, dtype=F64, **options):
    torch.manual_seed(0)
    return LSTM(2, 3, dtype=dtype, engine=engine, **options).eval()


def sequences(dtype=F64):
    torch.manual_seed(1)
    return torch.randn(3, 4, 2, dtype=F64).to(dtype).requires_grad_()


def penalty(lstm, x):
    """Return the square of a gradient; its own gradient is a second derivative."""
    y, (h_n, c_n) = lstm(x)
    loss = y.sin().sum() + h_n.cos().sum() + c_n.square().sum()
    return torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()


def gradients(value, lstm, x):
    return torch.autograd.grad(value, [x, *lstm.parameters()])


HOOKS = {
    "save_on_cpu": save_on_cpu,
    "copies": lambda: saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
}


@each_engine
@each_option
def test_a_gradient_penalty_and_checkpoints(engine, options):
    lstm, x = make(engine, **options), sequences()
    expected = gradients(penalty(lstm, x), lstm, x)
    around = checkpoint(lambda x: penalty(lstm, x), x, use_reentrant=False)
    within = penalty(lambda x: checkpoint(lstm, x, use_reentrant=False), x)
    for value in (around, within):
        torch.testing.assert_close(gradients(value, lstm, x), expected)
    # PyTorch's reentrant checkpoint supports only first derivatives.
    checkpoint(lambda x: lstm(x)[0].sin().sum(), x, use_reentrant=True).backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(lstm(x)[0].sin().sum(), x)[0])


@each_engine
@each_option
@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS)
def test_second_derivatives_under_saved_tensor_hooks(engine, options, hooks):
    lstm, x = make(engine, **options), sequences()
    expected = gradients(penalty(lstm, x), lstm, x)
    with hooks():
        value = penalty(lstm, x)
        inside = gradients(value, lstm, x)
    with hooks():
        value = penalty(lstm, x)
    torch.testing.assert_close((inside, gradients(value, lstm, x)), (expected, expected))


@each_engine
@each_option
@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS)
def test_reverse_over_forward_mode_under_hooks(engine, options, hooks):
    lstm, x = make(engine, **options), sequences()
    slope = torch.autograd.grad(lstm(x)[0].sin().sum(), x, create_graph=True)[0].sum()
    with hooks(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(lstm(dual)[0].sin().sum()).tangent
        found = gradients(tangent, lstm, x)
    torch.testing.assert_close(found, gradients(slope, lstm, x))


@each_engine
@each_option
def test_batched_gradients(engine, options):
    lstm, x = make(engine, **options), sequences()
    y, leaves = lstm(x)[0], [x, *lstm.parameters()]
    vs = torch.randn(3, *y.shape, dtype=F64)
    together = torch.autograd.grad(y, leaves, vs, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(y, leaves, v, retain_graph=True) for v in vs]
    torch.testing.assert_close(together, tuple(map(torch.stack, zip(*alone, strict=True))))
    jacobian = torch.autograd.functional.jacobian
    first = x[:2].detach()
    expected = jacobian(lambda x: lstm(x)[0], first)
    for strategy in ("reverse-mode", "forward-mode"):
        found = jacobian(lambda x: lstm(x)[0], first, vectorize=True, strategy=strategy)
        torch.testing.assert_close(found, expected)


@each_engine
@each_option
def test_batched_gradients_can_be_differentiated(engine, options):
    lstm, x = make(engine, **options), sequences()[:2, :2].detach().requires_grad_()
    found = []
    for vectorize in (False, True):
        curvature = torch.autograd.functional.hessian(
            lambda x: lstm(x)[0].pow(2).sum(), x, create_graph=True, vectorize=vectorize
        )
        found.append(gradients(curvature.square().sum(), lstm, x))
    torch.testing.assert_close(*found)
    y, leaves = lstm(x)[0], [x, *lstm.parameters()]
    vs = torch.randn(2, *y.shape, dtype=F64)
    together = torch.autograd.grad(y, leaves, vs, is_grads_batched=True, create_graph=True)
    alone = [torch.autograd.grad(y, leaves, v, create_graph=True) for v in vs]
    sums = [sum(g.square().sum() for g in grads) for grads in (together, [g for one in alone for g in one])]
    torch.testing.assert_close(*(torch.autograd.grad(value, leaves, retain_graph=True) for value in sums))


@each_engine
@each_option
def test_gradcheck_with_batched_gradients(engine, options):
    lstm, x = make(engine, **options), sequences()[:2, :2].detach().requires_grad_()
    more = {"check_batched_grad": True, "fast_mode": False}
    assert gradcheck(lambda x: lstm(x)[0], x, check_forward_ad=True, check_batched_forward_grad=True, **more)
    assert gradgradcheck(lambda x: lstm(x)[0].sin(), x, **more)


@each_engine
@each_option
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
def test_outputs_may_be_changed_in_place(engine, options, dtype):
    lstm, x = make(engine, dtype, **options), sequences(dtype)
    found = []
    for change in (lambda t: t.mul_(2).relu_(), lambda t: (t * 2).relu()):
        y, (h_n, c_n) = lstm(x)
        y, h_n, c_n = change(y), change(h_n), change(c_n)
        loss = y.sin().sum() + h_n.cos().sum() + c_n.square().sum()
        slope = torch.autograd.grad(loss, [x, *lstm.parameters()], create_graph=True)
        found.append((*slope, *gradients(slope[0].square().sum(), lstm, x)))
    assert all(map(torch.equal, *found))


@each_engine
@each_option
def test_outputs_may_be_changed_in_place_inside_transforms(engine, options):
    lstm, x = make(engine, **options), sequences().detach()

    def changed(x):
        return lstm(x)[0].mul_(2).relu_().square().sum()

    def plainly(x):
        return (lstm(x)[0] * 2).relu().square().sum()

    for transform in (grad, hessian, lambda f: vmap(grad(f))):
        given = torch.stack([x, 2 * x]) if transform not in (grad, hessian) else x[:2]
        torch.testing.assert_close(transform(changed)(given), transform(plainly)(given))


@each_engine
@pytest.mark.parametrize("T", [1, 2])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("options", OPTIONS_OF_A_LAYER.values(), ids=OPTIONS_OF_A_LAYER)
def test_overwritten_outputs_do_not_reach_the_gradients(engine, T, reverse, options):
    """No y is kept for a single step, and a longer one is computed again if it has changed."""
    x, weights, found = sequences()[:T], list(make(engine).parameters())[:4], []
    for overwrites in (False, True):
        y, (h_n, c_n) = lstm_fused.lstm(x, *weights, **options, reverse=reverse, engine=engine)
        if overwrites:
            y.detach().fill_(float("nan"))
        found.append(torch.autograd.grad(h_n.sin().sum() + c_n.sum(), [x, *weights]))
    assert all(map(torch.equal, *found))


@each_engine
def test_a_cells_states_may_be_changed_in_place(engine):
    cell, x = LSTMCell(2, 3, dtype=F64, engine=engine), sequences()
    found = []
    for factor in (lambda t: t.mul_(2), lambda t: t * 2):
        h, c = cell(x[0])
        h, c = cell(x[1], (factor(h), factor(c)))
        found.append(torch.autograd.grad((h.sum(), c.sum()), [x, *cell.parameters()]))
    assert all(map(torch.equal, *found))


@each_engine
def test_inputs_changed_in_place_are_refused(engine):
    lstm, x = make(engine), sequences()
    given = x * 1
    y, _ = lstm(given)
    given.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_engine
def test_outputs_are_saved_once(engine):
    y, _ = make(engine)(sequences())
    kept = y.grad_fn.saved_tensors
    assert y.data_ptr() in [t.data_ptr() for t in kept if t is not None]


@each_engine
@pytest.mark.parametrize("options", [*OPTIONS.values()], ids=[*OPTIONS])
def test_lengths_without_values(engine, options):
    def states(lstm, x, lengths):
        y, (h_n, c_n) = lstm(x, lengths=lengths)
        y.sum().backward()
        assert all(p.grad.shape == p.shape for p in lstm.parameters())
        return y.shape, h_n.shape, c_n.shape

    batch = 3 if options.get("batch_first") else 4
    expected = states(make(engine, **options), sequences(), torch.full((batch,), 2))
    with FakeTensorMode():
        lstm = LSTM(2, 3, dtype=F64, engine=engine, **options)
        fake = torch.randn(3, 4, 2, dtype=F64), torch.full((batch,), 2)
        assert states(lstm, *fake) == expected
    if engine == "reference":
        lstm = LSTM(2, 3, dtype=F64, engine=engine, device="meta", **options)
        meta = torch.randn(3, 4, 2, dtype=F64, device="meta"), torch.full((batch,), 2, device="meta")
        assert states(lstm, *meta) == expected


@each_engine
@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx_supports_lengths(engine, tracing_mode):
    lstm = make(engine, bidirectional=True)
    parameters = dict(lstm.named_parameters())

    def slopes(parameters, x, lengths):
        y, (h_n, c_n) = functional_call(lstm, parameters, (x,), {"lengths": lengths})
        loss = y.sin().sum() + h_n.cos().sum() + c_n.square().sum()
        return torch.autograd.grad(loss, list(parameters.values()))

    x = sequences().detach()
    traced = make_fx(slopes, tracing_mode=tracing_mode)(parameters, x, torch.tensor([3, 0, 2, 1]))
    other = torch.tensor([1, 3, 0, 0])  # other lengths: the graph must not contain the first ones
    torch.testing.assert_close(traced(parameters, x, other), slopes(parameters, x, other))


def test_wrong_lengths_with_values_are_refused():
    with pytest.raises(ValueError, match="lengths: expected values from 0 to T = 3"):
        make(ALL[0])(sequences(), lengths=torch.tensor([1, 4, 0, 0]))
