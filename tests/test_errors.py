"""Invalid arguments: one error before any work, with the argument, what was expected and what was given."""

import re

import pytest
import torch
from harness import pack_sequence

import lstm_fused
from lstm_fused import LSTM, ArgumentError, LSTMCell, SequenceClassifier

X = torch.zeros(4, 3, 5)
LENGTHS = torch.tensor([4, 2, 1], device="cpu")  # a device-side assertion would end the process


def layer(**options):
    return LSTM(5, 7, **options)


def replaced(name, value, **options):
    module = layer(**options)
    delattr(module, name)
    module.register_parameter(name, None if value is None else torch.nn.Parameter(value))
    return module(X)


def zeros(*shape, **kind):
    return torch.zeros(*shape, **kind)


MODULE_ERRORS = {
    "rank": (lambda: layer()(X[0, 0]), "input: expected a tensor of 2 dimensions", "shape (5,)"),
    "rank 4": (lambda: layer()(X[None]), "input: expected a tensor of 2 dimensions", "shape (1, 4, 3, 5)"),
    "features": (lambda: layer()(zeros(4, 3, 6)), "input: expected 5 features", "shape (4, 3, 6)"),
    "no tensor": (lambda: layer()([1.0]), "input: expected a tensor", "list"),
    "integers": (lambda: layer()(X.long()), "input: expected a floating-point dtype", "torch.int64"),
    "dtype": (
        lambda: layer()(X.double()),
        "input: expected torch.float32 like the parameter",
        "torch.float64",
    ),
    "device": (
        lambda: layer()(X.to("meta")),
        f"input: expected device {X.device} like the parameter",
        "meta",
    ),
    "hx single": (lambda: layer()(X, zeros(1, 3, 7)), "hx: expected a pair (h_0, c_0)", "Tensor"),
    "hx triple": (lambda: layer()(X, (X, X, X)), "hx: expected a pair (h_0, c_0)", "tuple of 3"),
    "hx None": (lambda: layer()(X, (None, None)), "hx[0]: expected a tensor of shape (1, 3, 7)", "NoneType"),
    "h0 rows": (
        lambda: layer(num_layers=2)(X, (zeros(1, 3, 7), zeros(2, 3, 7))),
        "hx[0]: expected shape (2, 3, 7) = (num_layers * directions, batch, hidden_size)",
        "(1, 3, 7)",
    ),
    "c0 batch": (
        lambda: layer(batch_first=True)(X, (zeros(1, 4, 7), zeros(1, 3, 7))),
        "hx[1]: expected shape (1, 4, 7)",
        "(1, 3, 7)",
    ),
    "h0 projected": (
        lambda: layer(proj_size=2)(X, (zeros(1, 3, 7), zeros(1, 3, 7))),
        "hx[0]: expected shape (1, 3, 2) = (num_layers * directions, batch, proj_size)",
        "(1, 3, 7)",
    ),
    "hx of one sequence": (
        lambda: layer()(X[:, 0], (zeros(1, 1, 7), zeros(1, 1, 7))),
        "hx[0]: expected shape (1, 7) = (num_layers * directions, hidden_size)",
        "(1, 1, 7)",
    ),
    "hx dtype": (
        lambda: layer()(X, (zeros(1, 3, 7), zeros(1, 3, 7, dtype=torch.float64))),
        "hx[1]: expected torch.float32",
        "torch.float64",
    ),
    "hx device": (
        lambda: layer()(X, (zeros(1, 3, 7, device="meta"), zeros(1, 3, 7))),
        f"hx[0]: expected device {X.device}",
        "meta",
    ),
    "lengths type": (
        lambda: layer()(X, lengths=[4, 2, 1]),
        "lengths: expected an integer tensor of shape (3,)",
        "list",
    ),
    "lengths dtype": (
        lambda: layer()(X, lengths=LENGTHS.float()),
        "lengths: expected an integer",
        "torch.float32",
    ),
    "lengths bool": (lambda: layer()(X, lengths=LENGTHS > 0), "lengths: expected an integer", "torch.bool"),
    "lengths shape": (lambda: layer()(X, lengths=LENGTHS[:2]), "lengths: expected shape (3,)", "(2,)"),
    "lengths long": (
        lambda: layer()(X, lengths=LENGTHS + 1),
        "lengths: expected values from 0 to T = 4",
        "[5]",
    ),
    "lengths negative": (
        lambda: layer()(X, lengths=LENGTHS - 2),
        "lengths: expected values from 0 to T = 4",
        "[-1]",
    ),
    "lengths of packed": (
        lambda: layer()(pack_sequence([X[0]]), lengths=LENGTHS),
        "lengths: expected None with a PackedSequence",
        "a tensor",
    ),
    "packed features": (
        lambda: layer()(pack_sequence([zeros(3, 6)])),
        "input: expected 5 features",
        "shape (3, 6)",
    ),
    "sparse": (lambda: layer()(X.to_sparse()), "input: expected a dense tensor", "a sparse_coo one"),
    "nested": (
        lambda: layer()(torch.nested.nested_tensor([zeros(2, 5), zeros(3, 5)])),
        "input: expected a dense tensor",
        "a nested one",
    ),
    "jagged": (
        lambda: layer()(torch.nested.nested_tensor([zeros(2, 5), zeros(3, 5)], layout=torch.jagged)),
        "input: expected a dense tensor",
        "a nested one",
    ),
    "mkldnn": (lambda: layer()(X.cpu().to_mkldnn()), "input: expected a dense tensor", "a _mkldnn one"),
    "complex": (lambda: layer()(X + 0j), "input: expected a floating-point dtype", "torch.complex64"),
    "quantized": (
        lambda: layer()(torch.quantize_per_tensor(X.cpu(), 0.1, 0, torch.quint8)),
        "input: expected a floating-point dtype",
        "torch.quint8",
    ),
    "None": (lambda: layer()(None), "input: expected a tensor", "NoneType"),
    "hx sparse": (
        lambda: layer()(X, (zeros(1, 3, 7), zeros(1, 3, 7).to_sparse())),
        "hx[1]: expected a dense tensor",
        "a sparse_coo one",
    ),
    "lengths sparse": (
        lambda: layer()(X, lengths=LENGTHS.to_sparse()),
        "lengths: expected a dense tensor",
        "a sparse_coo one",
    ),
    "cell sparse": (
        lambda: LSTMCell(5, 7)(X[0].to_sparse()),
        "input: expected a dense tensor",
        "a sparse_coo one",
    ),
    "flat peephole sparse": (
        lambda: lstm_fused.lstm(X, zeros(28, 5), zeros(28, 7), peephole=zeros(21).to_sparse()),
        "peephole: expected a dense tensor",
        "a sparse_coo one",
    ),
    "cell None": (lambda: LSTMCell(5, 7)(None), "input: expected a tensor", "NoneType"),
    "parameter's shape": (
        lambda: replaced("weight_hh_l0", zeros(28, 6)),
        "weight_hh_l0: expected shape (28, 7)",
        "(28, 6)",
    ),
    "bias that would be broadcast": (
        lambda: replaced("bias_hh_l0", zeros(())),
        "bias_hh_l0: expected shape (28,)",
        "()",
    ),
    "coupled parameter's shape": (
        lambda: replaced("weight_ih_l0", zeros(28, 5), coupled=True),
        "weight_ih_l0: expected shape (21, 5)",
        "(28, 5)",
    ),
    "no parameter": (
        lambda: replaced("weight_peephole_l0", None),
        "weight_peephole_l0: expected a tensor of shape (3, 7)",
        "NoneType",
    ),
    "sparse parameter": (
        lambda: replaced("weight_hh_l0", zeros(28, 7).to_sparse()),
        "weight_hh_l0: expected a dense tensor",
        "a sparse_coo one",
    ),
    "engine": (lambda: layer(engine="cudnn"), "engine: expected one of", "'cudnn'"),
    "proj_size": (
        lambda: layer(proj_size=7),
        "proj_size: expected a non-negative integer less than hidden_size = 7",
        "7",
    ),
    "proj_size negative": (lambda: layer(proj_size=-1), "proj_size: expected", "-1"),
    "input_size": (lambda: LSTM(0, 7), "input_size: expected a positive integer", "0"),
    "hidden_size": (lambda: LSTM(5, 7.0), "hidden_size: expected a positive integer", "7.0"),
    "num_layers": (lambda: layer(num_layers=0), "num_layers: expected a positive integer", "0"),
    "dropout": (lambda: layer(num_layers=2, dropout=1.5), "dropout: expected a probability", "1.5"),
    "bidirectional": (lambda: layer(bidirectional=2), "bidirectional: expected True or False", "2"),
    "recurrent_dropout": (
        lambda: layer(recurrent_dropout=-0.1),
        "recurrent_dropout: expected a probability from 0 to 1",
        "-0.1",
    ),
    "zoneout_h": (lambda: layer(zoneout_h=2), "zoneout_h: expected a probability from 0 to 1", "2"),
    "zoneout_c": (lambda: LSTMCell(5, 7, zoneout_c="a"), "zoneout_c: expected a probability", "'a'"),
    "cell_clip": (lambda: layer(cell_clip=0), "cell_clip: expected a positive number or None", "0"),
    "cell_clip NaN": (lambda: layer(cell_clip=float("nan")), "cell_clip: expected a positive number", "nan"),
    "cell's cell_clip": (lambda: LSTMCell(5, 7, cell_clip=True), "cell_clip: expected a positive", "True"),
    "coupled": (lambda: layer(coupled=1), "coupled: expected True or False", "1"),
    "layer_norm": (lambda: LSTMCell(5, 7, layer_norm=None), "layer_norm: expected True or False", "None"),
    "coupled with layer_norm": (
        lambda: layer(coupled=True, layer_norm=True),
        "coupled: expected False with layer_norm",
        "True",
    ),
    "forget_bias": (lambda: layer(forget_bias="1"), "forget_bias: expected a number or None", "'1'"),
    "forget_bias without bias": (
        lambda: layer(forget_bias=1.0, bias=False),
        "forget_bias: expected None with bias=False",
        "1.0",
    ),
    "cell rank": (lambda: LSTMCell(5, 7)(X), "input: expected a tensor of 1 dimension", "shape (4, 3, 5)"),
    "cell hx": (
        lambda: LSTMCell(5, 7)(X[0], (zeros(3, 7), zeros(2, 7))),
        "hx[1]: expected shape (3, 7) = (B, hidden_size)",
        "(2, 7)",
    ),
    "cell size": (lambda: LSTMCell(5, True), "hidden_size: expected a positive integer", "True"),
    "classes": (lambda: SequenceClassifier(5, 7, 1, 0), "num_classes: expected a positive integer", "0"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*quantize")
@pytest.mark.parametrize("name", MODULE_ERRORS)
def test_module_errors(name):
    check(*MODULE_ERRORS[name])


def functional(**changed):
    arguments = {
        "input": X,
        "weight_ih": zeros(28, 5),
        "weight_hh": zeros(28, 7),
        "bias_ih": zeros(28),
        "bias_hh": zeros(28),
    } | changed
    return lstm_fused.lstm(**arguments)


FUNCTIONAL_ERRORS = {
    "rank": ({"input": X[0]}, "input: expected a tensor of 3 dimensions (T, B, I)", "shape (3, 5)"),
    "features": ({"input": zeros(4, 3, 6)}, "input: expected 5 features", "shape (4, 3, 6)"),
    "weight_ih rows": (
        {"weight_ih": zeros(27, 5)},
        "weight_ih: expected a matrix of 4 * hidden_size rows",
        "(27, 5)",
    ),
    "weight_ih None": (
        {"weight_ih": None},
        "weight_ih: expected a matrix of 4 * hidden_size rows",
        "NoneType",
    ),
    "weight_hh": ({"weight_hh": zeros(28, 6)}, "weight_hh: expected shape (28, 7)", "(28, 6)"),
    "weight_hh rank": ({"weight_hh": zeros(28)}, "weight_hh: expected a matrix", "(28,)"),
    "weight_hh dtype": (
        {"weight_hh": zeros(28, 7, dtype=torch.float64)},
        "weight_hh: expected torch.float32 like the input",
        "torch.float64",
    ),
    "bias_ih": ({"bias_ih": zeros(7)}, "bias_ih: expected shape (28,)", "(7,)"),
    "bias_hh device": ({"bias_hh": zeros(28, device="meta")}, f"bias_hh: expected device {X.device}", "meta"),
    "peephole": ({"peephole": zeros(27)}, "peephole: expected shape (3, 7)", "(27,)"),
    "no peephole": ({"peephole": zeros(0)}, "peephole: expected shape (3, 7)", "(0,)"),
    "weight_hr": ({"weight_hr": zeros(7, 7)}, "weight_hr: expected fewer rows than hidden_size = 7", "7"),
    "weight_hr shape": ({"weight_hr": zeros(3, 7)}, "weight_hr: expected shape (7, 7)", "(3, 7)"),
    "h0": ({"hx": (zeros(1, 3, 7), zeros(3, 7))}, "hx[0]: expected shape (3, 7)", "(1, 3, 7)"),
    "lengths": ({"lengths": LENGTHS * 2}, "lengths: expected values from 0 to T = 4", "[8]"),
    "gain_ih": ({"gain_ih": zeros(7), "gain_hh": zeros(28)}, "gain_ih: expected shape (28,)", "(7,)"),
    "gain_hh": ({"gain_ih": zeros(28), "gain_hh": zeros(7)}, "gain_hh: expected shape (28,)", "(7,)"),
    "one gain": ({"gain_hh": zeros(28)}, "gain_ih and gain_hh: expected both or none", "one of them"),
    "h_mask": ({"h_mask": zeros(3, 6)}, "h_mask: expected shape (3, 7)", "(3, 6)"),
    "zoneout_h": ({"zoneout_h": zeros(3, 7)}, "zoneout_h: expected shape (4, 3, 7)", "(3, 7)"),
    "zoneout_c": ({"zoneout_c": zeros(4, 1, 7)}, "zoneout_c: expected shape (4, 3, 7)", "(4, 1, 7)"),
    "cell_clip": ({"cell_clip": -1}, "cell_clip: expected a positive number or None", "-1"),
    "reverse": ({"reverse": "no"}, "reverse: expected True or False", "'no'"),
    "sparse weight": (
        {"weight_hh": torch.zeros(28, 7, device="cpu").to_sparse()},
        "weight_hh: expected a dense tensor",
        "a sparse_coo one",
    ),
    "engine": ({"engine": "none"}, "engine: expected one of", "'none'"),
}


@pytest.mark.parametrize("name", FUNCTIONAL_ERRORS)
def test_functional_errors(name):
    changed, expected, got = FUNCTIONAL_ERRORS[name]
    check(lambda: functional(**changed), expected, got)


def check(call, expected, got):
    with pytest.raises(ArgumentError, match=re.escape(expected)) as caught:
        call()
    said = str(caught.value)
    assert said.endswith(f"got {got}") and "\n" not in said, said


def test_a_meta_module_accepts_hx():
    # Shape inference needs no data.
    y, _ = LSTM(5, 7, device="meta")(X.to("meta"))
    assert y.shape == (4, 3, 7) and y.is_meta
