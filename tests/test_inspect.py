"""`inspect`, compared with the equations written out for one sequence, and its picture."""

import pytest
import torch
from harness import ENGINES_HERE, pack_sequence

import lstm_fused
from lstm_fused import LSTM, ArgumentError, Gates, LSTMCell, SequenceClassifier

F64 = torch.float64


@pytest.fixture
def draw_gates():
    return pytest.importorskip("lstm_fused.plot", reason="matplotlib is not installed").draw_gates


def by_hand(module, suffix, x, h, c):
    """Compute gates and outputs of one layer and direction over one sequence x [T, I]."""
    W_ih, W_hh, b_ih, b_hh, W_hr, peephole, *_ = module._parameters_of(suffix)
    p_i, p_f, p_o = peephole
    steps = [None] * len(x)
    order = range(len(x))
    for t in reversed(order) if suffix.endswith("_reverse") else order:
        a_i, a_f, a_g, a_o = (W_ih @ x[t] + b_ih + W_hh @ h + b_hh).chunk(4)
        i, f, g = torch.sigmoid(a_i + p_i * c), torch.sigmoid(a_f + p_f * c), torch.tanh(a_g)
        c = f * c + i * g
        o = torch.sigmoid(a_o + p_o * c)
        h = W_hr @ (o * torch.tanh(c))
        steps[t] = i, f, g, o, c, h
    *gates, y = map(torch.stack, zip(*steps, strict=True))
    return Gates(*gates), y


@pytest.mark.parametrize("engine", [engine.name for engine in ENGINES_HERE])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gates_equal_the_equations(engine, batch_first):
    module = LSTM(5, 7, 2, bidirectional=True, proj_size=3, batch_first=batch_first, dtype=F64, engine=engine)
    x = torch.randn(4, 6, 5, dtype=F64)  # [B, T, I]
    hx = torch.randn(4, 4, 3, dtype=F64), torch.randn(4, 4, 7, dtype=F64)
    lengths = torch.tensor([3, 6, 1, 5])
    found = lstm_fused.inspect(module, x if batch_first else x.transpose(0, 1), hx, lengths)
    assert list(found) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    for b, length in enumerate(lengths.tolist()):
        below = x[b, :length]
        for layer in range(2):
            ys = []
            for row, suffix in enumerate(module._suffixes(layer), start=2 * layer):
                expected, y = by_hand(module, suffix, below, hx[0][row, b], hx[1][row, b])
                ys.append(y)
                for name, value in found[suffix]._asdict().items():
                    of_b = value[b] if batch_first else value[:, b]
                    assert not of_b[length:].any(), f"{suffix} {name} past the length"
                    torch.testing.assert_close(of_b[:length], getattr(expected, name), rtol=1e-12, atol=1e-12)
            below = torch.cat(ys, dim=1)


def test_one_sequence_without_a_batch():
    module = LSTM(5, 7, batch_first=True)
    x = torch.randn(6, 5)
    (alone,), (batched,) = (lstm_fused.inspect(module, value).values() for value in (x, x[None]))
    for one, of_batch in zip(alone, batched, strict=True):
        assert one.shape == (6, 7) and torch.equal(one, of_batch[0]) and not one.requires_grad


def test_refuses_a_packed_sequence():
    with pytest.raises(ValueError, match="input: expected a padded tensor, with lengths, got a PackedSeq"):
        lstm_fused.inspect(LSTM(5, 7), pack_sequence([torch.randn(3, 5)]))


REFUSED = {
    "a model without one": (torch.nn.Sequential(torch.nn.LSTM(5, 7)), "Sequential"),
    "a cell": (LSTMCell(5, 7), "LSTMCell"),
    "torch's": (torch.nn.LSTM(5, 7), "LSTM"),
    "none": (None, "NoneType"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_other_modules(name):
    module, got = REFUSED[name]
    with pytest.raises(
        ArgumentError, match=rf"^module: expected an lstm_fused.LSTM or a model that holds one, got {got}$"
    ):
        lstm_fused.inspect(module, torch.randn(6, 5))


@pytest.mark.parametrize("option", ["dropout", "recurrent_dropout", "zoneout_h", "zoneout_c"])
def test_refuses_training_mode_with_random_options(option):
    module, x = LSTM(5, 7, 2, **{option: 0.5}), torch.randn(6, 5)
    with pytest.raises(
        ArgumentError, match=rf"^module: expected eval mode, got training mode with {option}=0.5$"
    ):
        lstm_fused.inspect(module, x)
    assert len(lstm_fused.inspect(module.eval(), x)) == 2


class TwoReaders(torch.nn.Module):
    """Holds an LSTM that it calls twice, one inside another module, and one that it never calls."""

    def __init__(self):
        super().__init__()
        self.reader = LSTM(5, 7, batch_first=True)
        self.inner = torch.nn.ModuleDict({"second": LSTM(7, 4, 2, bidirectional=True)})
        self.idle = LSTM(5, 7)

    def forward(self, x, lengths):
        self.reader(x)
        y, _ = self.reader(2 * x, lengths=lengths)
        return self.inner["second"](y.transpose(0, 1), None, lengths)


def test_gates_of_a_model_that_holds_layers():
    model, x, lengths = TwoReaders(), torch.randn(3, 6, 5), torch.tensor([6, 2, 4])
    found = lstm_fused.inspect(model, x, lengths=lengths)
    y, _ = model.reader(2 * x, lengths=lengths)
    first = lstm_fused.inspect(model.reader, 2 * x, lengths=lengths)
    second = lstm_fused.inspect(model.inner["second"], y.transpose(0, 1), lengths=lengths)
    expected = {f"reader.{name}": gates for name, gates in first.items()}
    expected |= {f"inner.second.{name}": gates for name, gates in second.items()}
    assert list(found) == list(expected) and len(found) == 5
    for name, gates in expected.items():
        assert all(map(torch.equal, found[name], gates)), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failing_model_keeps_no_hooks():
    model = SequenceClassifier(5, 7, 1, 2)
    with pytest.raises(ArgumentError, match=r"^input: expected 5 features"):
        lstm_fused.inspect(model, torch.randn(1, 6, 4))
    assert not model.lstm._forward_hooks and not model.lstm._forward_pre_hooks


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence_cut_out_of_a_batch(batch_first):
    module, x = LSTM(5, 7, batch_first=batch_first), torch.randn(3, 6, 5)
    batch = lstm_fused.inspect(module, x if batch_first else x.transpose(0, 1))["l0"]
    alone = lstm_fused.inspect(module, x[1, :4])["l0"]
    for of_batch, of_one in zip(batch.sequence(1, 4, batch_first=batch_first), alone, strict=True):
        torch.testing.assert_close(of_batch, of_one)
    with pytest.raises(ArgumentError, match=r"^gates: expected those of a batch, of 3 dimensions, got shape"):
        alone.sequence(0)


@pytest.mark.filterwarnings("ignore:dropout=0.5 acts between layers")
def test_accepts_training_mode_without_random_options():
    assert list(lstm_fused.inspect(LSTM(5, 7, dropout=0.5), torch.randn(6, 5))) == ["l0"]


def test_picture_needs_one_layer(draw_gates):
    of = lstm_fused.inspect(LSTM(5, 7, 2), torch.randn(6, 5))
    for wrong, got in ((of, "dict with the keys 'l0', 'l1': take the value of one"), (None, "NoneType")):
        with pytest.raises(ArgumentError, match=f"^gates: expected the Gates of one layer, got {got}$"):
            draw_gates(wrong)
    with pytest.raises(ArgumentError, match=r"^input: expected a tensor of shape \(6, I\), got list$"):
        draw_gates(of["l0"], input=[1.0])


def test_picture_shows_every_cell_and_the_shares(draw_gates):
    (gates,) = lstm_fused.inspect(LSTM(5, 7), torch.randn(6, 5)).values()
    x = torch.randn(6, 5)
    figure = draw_gates(gates, input=x, title="six steps")
    beside, f, i, o, g, c, overall = figure.axes[:7]
    assert figure.get_suptitle() == "six steps" and torch.equal(shown(beside), x.double())
    order = [gates.c.double().T.tolist().index(column) for column in shown(c).T.tolist()]
    assert sorted(order) == list(range(7))
    for axes, name in ((f, "f"), (i, "i"), (o, "o"), (g, "g")):
        assert torch.equal(shown(axes), getattr(gates, name)[:, order].double()), name
    kept, let_in, shares_shown = (torch.tensor(line.get_xdata()) for line in overall.lines)
    of = Gates(*(value.double() for value in gates))
    assert kept[0].isnan(), "before the first step there is no memory to keep"
    for found, share, amount in (
        (kept[1:], of.f[1:], of.c[:-1]),
        (let_in, of.i, of.g),
        (shares_shown, of.o, of.c.tanh()),
    ):
        torch.testing.assert_close(found, (share * amount.abs()).sum(1) / amount.abs().sum(1))


def test_pictures_that_are_compared_have_one_order_of_cells(draw_gates):
    module = LSTM(5, 7)
    both = [lstm_fused.inspect(module, torch.randn(T, 5))["l0"] for T in (6, 9)]
    order = lstm_fused.plot.similarity_order(*both)
    assert sorted(order.tolist()) == list(range(7))
    for gates in both:
        assert torch.equal(shown(draw_gates(gates, order=order).axes[0]), gates.f[:, order].double())


def test_picture_with_time_to_the_right(draw_gates):
    gates, x = lstm_fused.inspect(LSTM(5, 7), torch.randn(6, 5))["l0"], torch.randn(6, 5)
    order = torch.arange(7)
    figure = draw_gates(gates, input=x, order=order, across=True)
    for axes, values in zip(figure.axes, (x, gates.f, gates.i, gates.o, gates.g, gates.c), strict=False):
        assert torch.equal(shown(axes), values.T.double())
    downwards = draw_gates(gates, order=order).axes[5].lines
    for right, down in zip(figure.axes[6].lines, downwards, strict=True):
        assert right.get_ydata().tolist()[1:] == down.get_xdata().tolist()[1:]
    assert figure.axes[6].get_xlabel() == "time step"


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1], r"^order: expected a tensor of shape \(7,\), got list"),
        (torch.arange(6), r"^order: expected each of the cells 0 to 6 once, got shape \(6,\)"),
        (torch.zeros(7), r"^order: expected each of the cells 0 to 6 once"),
    ],
)
def test_picture_refuses_a_wrong_order(draw_gates, order, message):
    with pytest.raises(ArgumentError, match=message):
        draw_gates(Gates(*[torch.zeros(6, 7)] * 5), order=order)


@pytest.mark.parametrize("sizes", [(), (7, 8)])
def test_an_order_needs_gates_of_the_same_cells(draw_gates, sizes):
    with pytest.raises(ArgumentError, match=r"^sequences: expected gates of the same cells, got sizes"):
        lstm_fused.plot.similarity_order(*(Gates(*[torch.zeros(6, H)] * 5) for H in sizes))


def shown(axes):
    """Return the values of an image."""
    (image,) = axes.images
    return torch.tensor(image.get_array().data, dtype=F64)


def test_picture_of_the_reverse_direction(draw_gates):
    of = lstm_fused.inspect(LSTM(5, 7, bidirectional=True, dtype=F64), torch.randn(6, 5, dtype=F64))
    f, c = of["l0_reverse"].f, of["l0_reverse"].c.abs()
    kept = draw_gates(of["l0_reverse"], reverse=True).axes[5].lines[0].get_xdata()
    torch.testing.assert_close(torch.tensor(kept[:-1]), (f[:-1] * c[1:]).sum(1) / c[1:].sum(1))


def test_picture_of_one_cell_in_one_step(draw_gates, tmp_path):
    (gates,) = lstm_fused.inspect(LSTM(1, 1, dtype=torch.float16), torch.zeros(1, 1).half()).values()
    draw_gates(gates._replace(c=torch.zeros(1, 1))).savefig(tmp_path / "gates.png")


@pytest.mark.parametrize(
    ("shape", "input", "message"),
    [
        ((6, 2, 7), None, r"gates: expected those of one sequence, \(T, H\), got shape \(6, 2, 7\)"),
        ((0, 7), None, r"gates: expected those of one sequence, \(T, H\), got shape \(0, 7\)"),
        ((6, 7), torch.zeros(5, 3), r"input: expected shape \(6, I\), a row for each .* got \(5, 3\)"),
    ],
)
def test_picture_refuses_wrong_shapes(draw_gates, shape, input, message):
    with pytest.raises(ValueError, match=message):
        draw_gates(Gates(*[torch.zeros(shape)] * 5), input=input)
