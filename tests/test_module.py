"""The modules as drop-ins for torch.nn.LSTM and torch.nn.LSTMCell."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from cases import DEVICE
from harness import ENGINES_HERE, pack_sequence
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lstm_fused
from lstm_fused import LSTM, LSTMCell, SequenceClassifier

ALL = [engine.name for engine in ENGINES_HERE]
NARROW = [engine.name for engine in ENGINES_HERE if engine.narrow_c]
F64 = torch.float64

OPTIONS = [
    dict(zip(("num_layers", "bias", "batch_first", "bidirectional", "proj_size"), values, strict=True))
    for values in itertools.product((1, 2), (True, False), (True, False), (True, False), (0, 3))
]


def option_id(options):
    return "-".join(f"{k}{int(v)}" for k, v in options.items() if int(v) not in (0,))


def close(ours, theirs, what=""):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=lambda m: f"{what}: {m}")


def states(module, *batch, dtype=F64):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    P = module.proj_size or module.hidden_size
    return torch.randn(rows, *batch, P, dtype=dtype), torch.randn(
        rows, *batch, module.hidden_size, dtype=dtype
    )


def compare(ours, theirs, input, hx):
    """Compare outputs, states and the gradients of input, states and every parameter."""
    found = []
    for module in (ours, theirs):
        module.zero_grad()
        data = input.data if isinstance(input, PackedSequence) else input
        leaves = [t.detach().clone().requires_grad_() for t in (data, *(hx or ()))]
        x = input._replace(data=leaves[0]) if isinstance(input, PackedSequence) else leaves[0]
        y, (h, c) = module(x, tuple(leaves[1:]) or None)
        y = y.data if isinstance(y, PackedSequence) else y
        torch.autograd.backward([y, h, c], [t.detach().cos() for t in (y, h, c)])
        named = {"y": y, "h_n": h, "c_n": c} | {f"d_{i}": t.grad for i, t in enumerate(leaves)}
        named |= {n: p.grad for n, p in module.named_parameters() if "peephole" not in n}
        found.append(named)
    assert found[0].keys() == found[1].keys()
    for name, value in found[1].items():
        close(found[0][name], value, name)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_equals_torch_in_every_option(engine, options):
    theirs = nn.LSTM(5, 7, dtype=F64, **options)
    ours = LSTM.from_torch(theirs, engine=engine)
    x = torch.randn(4, 3, 5, dtype=F64)
    B = 4 if options["batch_first"] else 3
    compare(ours, theirs, x, states(theirs, B))
    compare(ours, theirs, x, None)
    compare(ours, theirs, x[:, 0], states(theirs))
    sequences = [torch.randn(n, 5, dtype=F64) for n in (2, 6, 1, 6)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    compare(ours, theirs, packed, states(theirs, 4))
    compare(ours, theirs, pack_sequence(sorted(sequences, key=len, reverse=True)), None)


def test_accepts_the_arguments_of_torch():
    positional = (5, 7, 2, False, True, 0.25, True, 3, DEVICE, F64)
    theirs, ours = nn.LSTM(*positional), LSTM(*positional, peephole=False)
    names = (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "proj_size",
    )
    for name in names:
        assert getattr(ours, name) == getattr(theirs, name), name
    x = torch.randn(4, 3, 5, dtype=F64)
    ours.load_state_dict(theirs.state_dict())
    ours.eval(), theirs.eval()
    close(ours(input=x, hx=None)[0], theirs(input=x, hx=None)[0])


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_state_dict_loads_both_ways(options):
    theirs, ours = nn.LSTM(5, 7, **options), LSTM(5, 7, peephole=False, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_same_seed_same_parameters_as_torch():
    torch.manual_seed(3)
    theirs = nn.LSTM(5, 7, 2, bidirectional=True)
    torch.manual_seed(3)
    ours = LSTM(5, 7, 2, bidirectional=True, peephole=False)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_peepholes_are_initialised_like_other_parameters_and_trained():
    module = LSTM(5, 64, 2, bidirectional=True)
    peepholes = {n: p for n, p in module.named_parameters() if "peephole" in n}
    assert list(peepholes) == [f"weight_peephole_l{k}{r}" for k in (0, 1) for r in ("", "_reverse")]
    for name, value in module.named_parameters():
        assert value.abs().max() <= 1 / 8 and value.std() > 0.5 / 8 / 3**0.5, name
    module(torch.randn(4, 3, 5))[0].sum().backward()
    for name, value in peepholes.items():
        assert value.shape == (3, 64) and value.grad.abs().min() > 0, name


def test_from_torch_keeps_options_mode_and_frozen_parameters():
    theirs = nn.LSTM(5, 7, 2, batch_first=True, dropout=0.5, dtype=F64).eval()
    theirs.weight_hh_l1.requires_grad_(False)
    ours = LSTM.from_torch(theirs)
    assert not ours.training and not ours.weight_hh_l1.requires_grad and ours.weight_ih_l1.requires_grad
    assert ours.dropout == 0.5 and ours.weight_ih_l0.dtype == F64
    assert ours.weight_peephole_l0.requires_grad and not ours.weight_peephole_l0.any()
    assert ours.weight_ih_l0.data_ptr() != theirs.weight_ih_l0.data_ptr()
    assert [n for n, _ in LSTM.from_torch(theirs, peephole=False).named_parameters()] == [
        n for n, _ in theirs.named_parameters()
    ]


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_lengths_equal_sequences_run_alone(engine, peephole, dtype):
    module = LSTM(5, 7, 2, bidirectional=True, proj_size=3, dtype=F64, peephole=peephole, engine=engine)
    x = torch.randn(6, 4, 5, dtype=F64)
    lengths = torch.tensor([3, 6, 0, 1], dtype=dtype)
    hx = states(module, 4)
    y, (h_n, c_n) = module(x, hx, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        assert not y[length:, b].any()
        one = tuple(s[:, b] for s in hx)
        alone, (h, c) = module(x[:length, b], one)
        close(y[:length, b], alone, "y")
        close(h_n[:, b], h, "h_n")
        close(c_n[:, b], c, "c_n")
        if length == 0:
            assert torch.equal(h_n[:, b], hx[0][:, b]) and torch.equal(c_n[:, b], hx[1][:, b])


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_equal_packing(batch_first):
    module = LSTM(5, 7, 2, bidirectional=True, batch_first=batch_first, dtype=F64)
    x = torch.randn(4, 4, 5, dtype=F64)
    lengths = torch.tensor([3, 4, 2, 1])
    y, (h, c) = module(x, lengths=lengths)
    packed, (h2, c2) = module(pack_padded_sequence(x, lengths.cpu(), batch_first, enforce_sorted=False))
    close(y, pad_packed_sequence(packed, batch_first)[0])
    close(h, h2)
    close(c, c2)


@pytest.mark.parametrize("engine", ALL)
def test_empty_batch_and_no_steps(engine):
    module = LSTM(5, 7, 2, bidirectional=True, engine=engine)
    hx = states(module, 3, dtype=torch.float32)
    y, (h, c) = module(torch.zeros(0, 3, 5), hx)
    assert y.shape == (0, 3, 14) and torch.equal(h, hx[0]) and torch.equal(c, hx[1])
    y, (h, c) = module(torch.zeros(4, 0, 5))
    assert y.shape == (4, 0, 14) and h.shape == c.shape == (4, 0, 7)
    y, (h, c) = module(torch.zeros(0, 5))
    assert y.shape == (0, 14) and h.shape == (4, 7)


def test_dropout_acts_between_layers_while_training():
    module = LSTM(5, 32, 2, dropout=0.5)
    x = torch.randn(4, 3, 5)
    torch.manual_seed(0)
    first = module(x)[0]
    torch.manual_seed(0)
    assert torch.equal(first, module(x)[0]) and not torch.equal(first, module(x)[0])
    assert torch.equal(module.eval()(x)[0], module(x)[0])
    assert (first != 0).all(), "the last layer's outputs are not dropped"
    module.train().dropout = 1.0
    alone = LSTM(32, 32)
    alone.load_state_dict({n.replace("l1", "l0"): v for n, v in module.state_dict().items() if "l1" in n})
    assert torch.equal(module(x)[0], alone(torch.zeros(4, 3, 32))[0])
    with pytest.warns(UserWarning, match="dropout=0.5 acts between layers"):
        LSTM(5, 7, dropout=0.5)


def test_a_module_survives_copy_pickle_and_dtype():
    module = LSTM(5, 7, 2, engine="reference")
    x = torch.randn(4, 3, 5)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)
    for other in copies:
        assert torch.equal(other(x)[0], module(x)[0])
    assert module.double()(x.double())[0].dtype == F64
    module.flatten_parameters()


def test_repr_shows_the_options():
    assert repr(LSTM(5, 7)) == "LSTM(5, 7, peephole=True)"
    shown = repr(LSTM(5, 7, 2, batch_first=True, dropout=0.5, peephole=False, engine="reference"))
    assert (
        shown == "LSTM(5, 7, num_layers=2, batch_first=True, dropout=0.5, peephole=False, engine='reference')"
    )
    assert repr(LSTMCell(5, 7, bias=False)) == "LSTMCell(5, 7, bias=False, peephole=True)"


def test_without_gradients_nothing_is_saved():
    module = LSTM(5, 7)
    x = torch.randn(4, 3, 5, requires_grad=True)
    with torch.no_grad():
        assert module(x)[0].grad_fn is None
    with torch.inference_mode():
        assert module(x)[0].is_inference()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    assert module(x.detach())[0].grad_fn is None and module(x)[0].grad_fn is not None


@pytest.mark.parametrize(
    ("engine", "dtype", "allowed"),
    [*((engine, torch.float32, 20) for engine in ALL), *((n, torch.bfloat16, 10) for n in NARROW)],
)
def test_bytes_saved_for_backward(engine, dtype, allowed):
    T, B, H = 10, 4, 32
    module = LSTM(16, H, engine=engine, dtype=dtype)
    x = torch.randn(T, B, 16, requires_grad=True, dtype=dtype)
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y, _ = module(x)
    beyond = {x, y, *module.parameters()}
    for t in beyond:
        kept.pop(t.untyped_storage().data_ptr(), None)
    bias_and_states = (4 * H + 2 * B * H) * dtype.itemsize
    assert sum(kept.values()) - bias_and_states <= allowed * T * B * H


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("bias", [True, False])
def test_cell_equals_torch_and_the_sequence(engine, bias):
    theirs = nn.LSTMCell(5, 7, bias, dtype=F64)
    plain = LSTMCell(5, 7, bias, dtype=F64, peephole=False, engine=engine)
    plain.load_state_dict(theirs.state_dict())
    x, hx = torch.randn(3, 5, dtype=F64), tuple(torch.randn(2, 3, 7, dtype=F64))
    for ours, exact in zip((*plain(x, hx), *plain(x)), (*theirs(x, hx), *theirs(x)), strict=True):
        close(ours, exact)
    for ours, exact in zip(
        plain(x[0], (hx[0][0], hx[1][0])), theirs(x[0], (hx[0][0], hx[1][0])), strict=True
    ):
        close(ours, exact)

    cell = LSTMCell(5, 7, bias, dtype=F64, engine=engine)
    layer = LSTM(5, 7, bias=bias, dtype=F64, engine=engine)
    layer.load_state_dict({f"{n}_l0": v for n, v in cell.state_dict().items()})
    xs = torch.randn(6, 3, 5, dtype=F64)
    y, (_, c_n) = layer(xs)
    hx = None
    for t, x in enumerate(xs):
        hx = cell(x, hx)
        close(hx[0], y[t])
    close(hx[1], c_n[0])


def test_classifier_reads_the_last_valid_step():
    model = SequenceClassifier(5, 7, 2, 4).double()
    x = torch.randn(3, 6, 5, dtype=F64)
    logits = model(x, lengths=torch.tensor([2, 6, 4]))
    assert logits.shape == (3, 4)
    for b, length in enumerate((2, 6, 4)):
        close(logits[b], model(x[b, :length]))
    assert model(x[0]).shape == (4,)
    assert not torch.equal(model(x), logits)


def test_functional_is_exported():
    layer = LSTM(5, 7, dtype=F64)
    x = torch.randn(4, 3, 5, dtype=F64)
    y, (h_n, _) = lstm_fused.lstm(
        x,
        layer.weight_ih_l0,
        layer.weight_hh_l0,
        layer.bias_ih_l0,
        layer.bias_hh_l0,
        peephole=layer.weight_peephole_l0,
    )
    close(y, layer(x)[0])
    close(h_n, layer(x)[1][0][0])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by Dynamo
@pytest.mark.parametrize("engine", ALL)
def test_compiles_without_a_graph_break(engine):
    module = LSTM(5, 7, 2, bidirectional=True, engine=engine)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5, requires_grad=True)
    lengths = torch.tensor([4, 0, 2])
    found = [torch.autograd.grad(m(x, lengths=lengths)[0].cos().sum(), x)[0] for m in (module, compiled)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("layers", [1, 2])
def test_last_states_can_be_detached_and_changed_in_place(layers):
    """The states are not views, as in torch.nn.LSTM."""
    module, x = LSTM(5, 7, layers), torch.randn(4, 3, 5)
    y, (h, c) = module(x)
    assert not h._is_view() and not c._is_view()
    (y.sum() + h.mul_(2).sum() + c.add_(1).sum()).backward()
    for state in module(x)[1]:
        state.detach_()
