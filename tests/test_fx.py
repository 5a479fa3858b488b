"""Whole models that hold the layers in torch.fx: a call of a layer is one node, wherever its Proxies are."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lstm_fused import LSTM, ArgumentError, LSTMCell, SequenceClassifier, lstm


class Whole(nn.Module):
    """A model in which a layer is called twice, with states, beside a cell and a function."""

    def __init__(self):
        super().__init__()
        self.before, self.lstm, self.cell = (
            nn.Linear(3, 3),
            LSTM(3, 4, num_layers=2, bidirectional=True),
            LSTMCell(8, 4),
        )
        self.weight_ih, self.weight_hh = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(16, 4))

    def forward(self, x, lengths):
        y, (h, c) = self.lstm(self.before(x), lengths=lengths)
        y, (h, c) = self.lstm(x, (h, c))
        h, c = self.cell(y[0])
        return lstm(y, self.weight_ih, self.weight_hh, hx=(h, c), lengths=lengths, reverse=True)[0] + h


def test_fx_records_a_call_of_a_layer_as_one_node():
    model = Whole()
    graph = torch.fx.symbolic_trace(model)
    called = [(node.op, node.target) for node in graph.graph.nodes if node.op.startswith("call_module")]
    assert called == [("call_module", name) for name in ("before", "lstm", "lstm", "cell")]
    assert lstm in [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert graph.lstm is model.lstm and "lstm_fused_functional_lstm(" in graph.code
    for T, B in ((5, 2), (7, 3)):
        x, lengths = torch.randn(T, B, 3), torch.arange(B) + 1
        for program in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
            assert torch.equal(program(x, lengths), model(x, lengths))
    names = [node.target for node in torch.fx.symbolic_trace(SequenceClassifier(3, 4, 1, 2)).graph.nodes]
    assert "lstm" in names and "head" in names


class Calls(nn.Module):
    """A model whose arguments, and a constant, are given to a layer by a function."""

    def __init__(self, call, layer=None):
        super().__init__()
        self.call, self.layer = call, layer
        self.register_buffer("x", torch.randn(5, 2, 3))
        self.register_buffer("zeros", torch.zeros(1, 2, 4))
        self.packed = pack_sequence([self.x[:3, 1], self.x[:, 0]], enforce_sorted=False)

    def forward(self, x, h, c, lengths):
        return self.call(self, x, h, c, lengths)


WEIGHTS = torch.randn(16, 3), torch.randn(16, 4)
ONES = torch.ones(5, dtype=torch.int64)  # batch_sizes of one sequence
MIXED = {
    "all": (LSTM, lambda m, x, h, c, n: m.layer(x, (h, c), n)),
    "by_name": (LSTM, lambda m, x, h, c, n: m.layer(hx=(h, c), lengths=n, input=x)),
    "states": (LSTM, lambda m, x, h, c, n: m.layer(m.x, [h, c])),
    "h": (LSTM, lambda m, x, h, c, n: m.layer(m.x, hx=(h, m.zeros))),
    "c": (LSTM, lambda m, x, h, c, n: m.layer(m.x, (m.zeros, c))),
    "pair": (LSTM, lambda m, x, h, c, n: m.layer(m.x, m.layer(x)[1])),
    "lengths": (LSTM, lambda m, x, h, c, n: m.layer(m.x, lengths=n)),
    "packed_states": (LSTM, lambda m, x, h, c, n: m.layer(m.packed, (h, c))[1]),
    "packed_c": (LSTM, lambda m, x, h, c, n: m.layer(m.packed, (m.zeros, c))[1]),
    "packed_data": (LSTM, lambda m, x, h, c, n: m.layer(m.packed._replace(data=x[:4].flatten(0, 1)))[0]),
    "packed_all": (LSTM, lambda m, x, h, c, n: m.layer(PackedSequence(x[:, 0], ONES))[0]),
    "cell_all": (LSTMCell, lambda m, x, h, c, n: m.layer(x[0], (h[0], c[0]))),
    "cell_by_name": (LSTMCell, lambda m, x, h, c, n: m.layer(hx=(h[0], c[0]), input=x[0])),
    "cell_states": (LSTMCell, lambda m, x, h, c, n: m.layer(m.x[0], (h[0], c[0]))),
    "cell_c": (LSTMCell, lambda m, x, h, c, n: m.layer(m.x[0], (m.zeros[0], c[0]))),
    "function": (None, lambda m, x, h, c, n: lstm(x, *WEIGHTS, hx=(h[0], c[0]), lengths=n)),
    "function_states": (None, lambda m, x, h, c, n: lstm(m.x, *WEIGHTS, hx=(h[0], c[0]))),
    "function_lengths": (None, lambda m, x, h, c, n: lstm(m.x, *WEIGHTS, lengths=n)),
    "function_weight": (None, lambda m, x, h, c, n: lstm(m.x, WEIGHTS[0], weight_hh=WEIGHTS[1] + h[0, 0])),
    "function_clip": (None, lambda m, x, h, c, n: lstm(m.x, *WEIGHTS, cell_clip=n.numel())),
}


@pytest.mark.parametrize(("kind", "call"), MIXED.values(), ids=MIXED)
def test_fx_records_a_call_wherever_the_proxies_are(kind, call):
    model = Calls(call, kind and kind(3, 4))
    graph = torch.fx.symbolic_trace(model)
    targets = [node.target for node in graph.graph.nodes]
    assert ("layer" if kind else lstm) in targets
    for _ in range(2):
        args = torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.randn(1, 2, 4), torch.randint(6, (2,))
        assert torch.equal(graph(*args)[0], model(*args)[0])


def test_fx_records_a_function_under_a_debugger():
    """A debugger reads every frame's locals, which adds names to the dict that locals() has returned."""

    def read(frame, event, argument):
        frame.f_locals  # noqa: B018
        return read

    before = sys.gettrace()
    sys.settrace(read)
    try:
        graph = torch.fx.symbolic_trace(Whole())
    finally:
        sys.settrace(before)
    assert lstm in [node.target for node in graph.graph.nodes]


def test_fx_names_what_it_needs():
    for layer in (LSTM(3, 4), LSTMCell(3, 4)):
        with pytest.raises(
            ArgumentError, match=r"symbolic_trace\(Sequential\(layer\)\), got the layer alone"
        ):
            torch.fx.symbolic_trace(layer)
        graph = torch.fx.symbolic_trace(nn.Sequential(layer)).graph
        with pytest.raises(ArgumentError, match=r"input: expected .* graph\.call_module"):
            layer(torch.fx.Proxy(next(iter(graph.nodes))))


WRONG = {
    "lengths": (LSTM, lambda m, x, h, c, n: m.layer(m.x, lengths=[n, n]), r"lengths: expected .* got list"),
    "states": (LSTM, lambda m, x, h, c, n: m.layer(m.x, {"h": h}), r"hx: expected a pair .* got dict"),
    "h": (LSTM, lambda m, x, h, c, n: m.layer(m.x, ((h,), m.zeros)), r"hx\[0\]: expected .* got tuple"),
    "cell_states": (LSTMCell, lambda m, x, h, c, n: m.layer(m.x[0], {h, c}), r"hx: .* pair .* got set"),
    "cell_c": (LSTMCell, lambda m, x, h, c, n: m.layer(m.x[0], (m.zeros[0], [c])), r"hx\[1\]: .* got list"),
    "function_n": (None, lambda m, x, h, c, n: lstm(m.x, *WEIGHTS, lengths=[n]), "lengths: .* got list"),
    "function_h": (None, lambda m, x, h, c, n: lstm(m.x, *WEIGHTS, hx=([h], c[0])), r"hx\[0\]: .* got list"),
}


@pytest.mark.parametrize(("kind", "call", "message"), WRONG.values(), ids=WRONG)
def test_fx_names_what_is_wrong_among_states_and_lengths(kind, call, message):
    """At the latest when the program runs: what fx records is checked there."""
    model = Calls(call, kind and kind(3, 4))
    args = torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.randn(1, 2, 4), torch.tensor([5, 2])
    with pytest.raises(ArgumentError, match=message):
        torch.fx.symbolic_trace(model)(*args)


class Doubled(LSTM):
    def forward(self, input, hx=None, lengths=None):
        return super().forward(2 * input, hx, lengths)


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, (LSTM, LSTMCell)) or super().is_leaf_module(module, name)


@pytest.mark.parametrize("kind", ["hook", "pre_hook", "subclass", "cell"])
def test_fx_refuses_what_it_would_run_twice(kind):
    """Hooks and a subclass's own code are recorded, and run again in the recorded call; not in a leaf."""
    layer = Doubled(3, 4) if kind == "subclass" else LSTMCell(3, 4) if kind == "cell" else LSTM(3, 4)
    if kind == "pre_hook":
        layer.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))
    elif kind != "subclass":
        layer.register_forward_hook(lambda module, arguments, output: (2 * output[0], output[1]))
    model, x = nn.Sequential(layer), torch.randn(2, 3) if kind == "cell" else torch.randn(5, 2, 3)
    with pytest.raises(ArgumentError, match="is_leaf_module"):
        torch.fx.symbolic_trace(model)
    graph = torch.fx.GraphModule(model, Leaves().trace(model))
    assert torch.equal(graph(x)[0], model(x)[0])
