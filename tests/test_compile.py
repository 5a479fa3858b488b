"""torch.compile and torch.export: one graph for all T and B, with one operator per layer and direction."""

import itertools

import pytest
import torch
from harness import ENGINES_HERE
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

from lstm_fused import LSTM, LSTMCell, SequenceClassifier

ALL = [engine.name for engine in ENGINES_HERE]
SIZES = ((4, 3), (7, 2), (5, 6))  # T, B
OPTIONS = [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 3, "batch_first": True}]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",  # raised by Dynamo
    "ignore:.*deprecated:DeprecationWarning",
)
each_engine = pytest.mark.parametrize("engine", ALL)


@pytest.fixture(autouse=True)
def from_scratch():
    torch._dynamo.reset()


def batch(T, B, options, with_lengths):
    """Return an input and unsorted lengths."""
    x = torch.randn(B, T, 5) if options.get("batch_first") else torch.randn(T, B, 5)
    return x, {"lengths": torch.arange(B).flip(0) % (T + 1)} if with_lengths else {}


def results(module, lstm, x, given):
    """Return outputs, states and the gradients of the input and every parameter."""
    x = x.clone().requires_grad_()
    y, (h_n, c_n) = module(x, **given)
    loss = y.cos().sum() + h_n.sin().sum() + c_n.sum()
    return y, h_n, c_n, *torch.autograd.grad(loss, [x, *lstm.parameters()])


@each_engine
@pytest.mark.parametrize(
    ("dynamic", "options", "with_lengths"),
    [(None, OPTIONS[1], True), (True, OPTIONS[1], False), (True, OPTIONS[0], True)],
    ids=["automatic", "dynamic", "dynamic-lengths"],
)
def test_compiled_for_every_size(engine, dynamic, options, with_lengths):
    lstm = LSTM(5, 7, engine=engine, **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lstm, fullgraph=True, dynamic=dynamic, backend=counter)
    compilations = []
    for T, B in SIZES:
        x, given = batch(T, B, options, with_lengths)
        torch.testing.assert_close(results(compiled, lstm, x, given), results(lstm, lstm, x, given))
        compilations.append(counter.frame_count)
    again = [b > a for a, b in itertools.pairwise(compilations)]
    assert again == ([False, False] if dynamic else [True, False])


def test_inductor():
    model = SequenceClassifier(5, 7, 2, 3)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for T, B in SIZES[:2]:
        found = []
        for m in (model, compiled):
            m.zero_grad()
            logits = m(torch.ones(B, T, 5).cumsum(1) / T, lengths=torch.arange(B) + 1)
            logits.sin().sum().backward()
            found.append([logits, *(p.grad.clone() for p in model.parameters())])
        torch.testing.assert_close(*found)


@each_engine
def test_compiled_without_gradients(engine):
    cell, x = LSTMCell(5, 7, engine=engine), torch.randn(3, 5)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), cell(x))
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), cell(x))


@each_engine
@pytest.mark.parametrize(
    ("options", "with_lengths", "grad"),
    [
        (OPTIONS[0], False, False),
        (OPTIONS[0], True, True),
        (OPTIONS[1], False, True),
        (OPTIONS[1], True, True),
    ],
    ids=["no_grad", "lengths", "busy", "busy-lengths"],
)
def test_export_keeps_one_operator_per_layer_and_direction(engine, options, with_lengths, grad):
    lstm = LSTM(5, 7, engine=engine, **options)
    T, B = Dim("T"), Dim("B")
    x, given = batch(*SIZES[0], options, with_lengths)
    sizes = {"input": {0: B, 1: T} if options.get("batch_first") else {0: T, 1: B}}
    if with_lengths:
        sizes["lengths"] = {0: B}
    with torch.set_grad_enabled(grad):
        program = export(lstm, (x,), given, dynamic_shapes=sizes)
    ours = [n for n in program.graph.nodes if "lstm_fused" in str(n.target)]
    assert len(ours) == lstm.num_layers * lstm.num_directions
    assert all(f"{engine}_forward" in str(n.target) for n in ours)
    saved = [n.args[-1] for n in ours]
    assert not any(saved), "an exported program saves tensors for a backward pass"
    for T_now, B_now in itertools.chain(SIZES, [(1, 1), (40, 2)]):
        x, given = batch(T_now, B_now, options, with_lengths)
        torch.testing.assert_close(program.module()(x, **given), lstm(x, **given))
