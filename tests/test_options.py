"""Options: numbers of other libraries, changes after construction, and copies."""

import copy
import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from cases import DEVICE
from torch import nn

import lstm_fused
from lstm_fused import LSTM, ArgumentError, LSTMCell, SequenceClassifier
from lstm_fused.layers.options import OPTIONS

NAN, INF = float("nan"), float("inf")
SHARE, NUMBER, FLAG = "a probability from 0 to 1", "a positive number or None", "True or False"
X = torch.zeros(4, 3, 5)

# For each option: accepted values with their plain value, then refused values with the error.
VALUES = {
    "input_size": ([(np.int64(5), 5)], [(5.0, "a positive integer"), (True, "a positive integer")]),
    "hidden_size": (
        [(np.int8(7), 7), (np.array(7), 7), (torch.tensor(7), 7)],
        [(0, "a positive integer"), ("7", "a positive integer"), (torch.tensor([7]), "a positive integer")],
    ),
    "num_layers": ([(np.int64(2), 2)], [(np.True_, "a positive integer"), (2**70, "below 2**60")]),
    "bias": ([(np.False_, False), (torch.tensor(True), True)], [("no", FLAG), (0, FLAG), (None, FLAG)]),
    "batch_first": ([(np.True_, True)], [(1, FLAG), (np.array([True]), FLAG)]),
    "dropout": (
        [(np.float32(0.25), 0.25), (1, 1.0)],
        [
            (1.5, SHARE),
            (-0.1, SHARE),
            (NAN, SHARE),
            (True, SHARE),
            ("0.5", SHARE),
            (None, SHARE),
            (1j, SHARE),
        ],
    ),
    "bidirectional": ([(np.array(True), True)], [(2, FLAG), ("yes", FLAG)]),
    "proj_size": (
        [(np.int64(3), 3)],
        [
            (-1, "a non-negative integer"),
            (False, "a non-negative integer"),
            (7, "a non-negative integer less than hidden_size = 7"),
        ],
    ),
    "peephole": ([(np.False_, False)], [("none", FLAG)]),
    "forget_bias": ([(np.float64(2), 2.0), (1, 1.0)], [("1", "a number"), (NAN, "finite"), (-INF, "finite")]),
    "coupled": ([(np.True_, True)], [(1, FLAG)]),
    "layer_norm": ([(np.True_, True)], [(None, FLAG)]),
    "recurrent_dropout": ([(np.float32(0.5), 0.5)], [(-0.1, SHARE), (np.float32(2), SHARE)]),
    "zoneout_h": ([(np.array(0.5), 0.5)], [(1.7, SHARE), (2, SHARE), (NAN, SHARE)]),
    "zoneout_c": ([(torch.tensor(0.5), 0.5)], [("a", SHARE), (np.array([0.5, 0.5]), SHARE)]),
    "cell_clip": (
        [(np.float32(1), 1.0), (3, 3.0)],
        [(-1.0, NUMBER), (0, NUMBER), (NAN, NUMBER), (True, NUMBER)],
    ),
    "engine": (
        [(np.str_("cpp"), "cpp"), (None, None)],
        [("x", "one of 'cpp', 'triton', "), (3, "one of")],
    ),
}
CLASSES = [LSTM, LSTMCell]
SETTABLE = [name for name, option in OPTIONS.items() if not option.fixed]
FIXED = [name for name, option in OPTIONS.items() if option.fixed]


def make(cls, **options):
    return cls(**{"input_size": 5, "hidden_size": 7} | options)


def each(names, which):
    """Yield every class, option and value."""
    return [
        pytest.param(cls, name, *pair, id=f"{cls.__name__}-{name}-{pair[0]!r}".replace("\n", ""))
        for cls in CLASSES
        for name in names
        if name in cls._options
        for pair in VALUES[name][which]
    ]


def test_every_option_is_covered():
    assert VALUES.keys() == OPTIONS.keys() == LSTM._options.keys()
    settable = "batch_first", "dropout", "recurrent_dropout", "zoneout_h", "zoneout_c", "cell_clip", "engine"
    assert tuple(SETTABLE) == settable


@pytest.mark.filterwarnings("ignore:dropout=.* acts between layers")
@pytest.mark.parametrize(("cls", "name", "value", "plain"), each(VALUES, 0))
def test_numbers_of_other_libraries_become_plain(cls, name, value, plain):
    module = make(cls, **{name: value})
    found = getattr(module, name)
    assert found == plain and type(found) is type(plain)
    assert repr(module) == repr(make(cls, **{name: plain}))
    assert "np." not in repr(module) and "tensor" not in repr(module)
    if name in SETTABLE:
        later = make(cls)
        setattr(later, name, value)
        assert repr(later) == repr(module) and type(getattr(later, name)) is type(plain)


@pytest.mark.parametrize(("cls", "name", "value", "expected"), each(VALUES, 1))
def test_invalid_values_are_refused_by_the_constructor(cls, name, value, expected):
    refused(lambda: make(cls, **{name: value}), name, expected)


@pytest.mark.parametrize(("cls", "name", "value", "expected"), each(SETTABLE, 1))
def test_invalid_values_are_refused_when_set(cls, name, value, expected):
    module = make(cls)
    before = getattr(module, name)
    refused(lambda: setattr(module, name, value), name, expected)
    assert getattr(module, name) == before


@pytest.mark.parametrize(
    ("cls", "name"), [(cls, name) for cls in CLASSES for name in FIXED if name in cls._options]
)
def test_options_that_decide_the_parameters_are_fixed(cls, name):
    module = make(cls)
    made = getattr(module, name)
    setattr(module, name, made)
    other = not made if isinstance(made, bool) else 3
    refused(lambda: setattr(module, name, other), name, f"{made!r}, which the parameters were created with")
    assert getattr(module, name) == made


def refused(call, name, expected):
    with pytest.raises(ArgumentError, match=rf"{name}: expected .*{re.escape(expected)}.*, got ") as caught:
        call()
    assert "\n" not in str(caught.value)


def test_changed_options_take_effect_and_are_shown():
    torch.manual_seed(0)
    module, x = LSTM(5, 7, 2), torch.randn(4, 3, 5)
    expected = LSTM(5, 7, 2, zoneout_h=0.5, zoneout_c=0.25, cell_clip=0.1, engine="reference")
    expected.load_state_dict(module.state_dict())
    module.zoneout_h, module.zoneout_c, module.cell_clip = np.float32(0.5), 0.25, 0.1
    module.engine = "reference"
    assert repr(module) == repr(expected)
    assert torch.equal(module.eval()(x)[0], expected.eval()(x)[0])


@pytest.mark.parametrize("cls", CLASSES)
def test_other_attributes_are_free(cls):
    module = make(cls)
    module.note, module.head = -1.0, nn.Linear(7, 2)
    assert module.note == -1.0 and "head.weight" in module.state_dict()
    if cls is LSTMCell:
        module.dropout = nn.Dropout(0.5)  # not an option of LSTMCell
        assert isinstance(module.dropout, nn.Dropout)


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("cls", CLASSES)
def test_copies_keep_options_and_checks(cls, copier):
    module = make(cls, cell_clip=0.5, zoneout_h=0.25)
    other = copier(module)
    assert repr(other) == repr(module)
    other.cell_clip = 2
    assert (other.cell_clip, module.cell_clip) == (2.0, 0.5)
    refused(lambda: setattr(other, "cell_clip", -1.0), "cell_clip", NUMBER)
    refused(lambda: setattr(other, "hidden_size", 8), "hidden_size", "7, which the parameters were created")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by Dynamo
def test_changed_options_under_compile():
    torch._dynamo.reset()
    module, x = LSTM(5, 7, 2), torch.randn(4, 3, 5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for clip in (None, 0.05, 0.01):
        module.cell_clip = clip
        assert torch.equal(compiled(x)[0], module(x)[0])

    @torch.compile(fullgraph=True, backend="aot_eager")
    def inside(x):
        module.cell_clip = 0.02
        return module(x)[0]

    found = inside(x)
    assert module.cell_clip == 0.02 and torch.equal(found, module(x)[0])


def test_function_and_classifier_accept_numpy():
    weights = torch.randn(28, 5), torch.randn(28, 7)
    x = torch.randn(4, 3, 5)
    expected = lstm_fused.lstm(x, *weights, cell_clip=0.5, reverse=True)[0]
    for clip in (np.float32(0.5), np.array(0.5), Fraction(1, 2)):
        assert torch.equal(lstm_fused.lstm(x, *weights, cell_clip=clip, reverse=np.True_)[0], expected)
    model = SequenceClassifier(np.int64(5), np.int64(7), np.int64(2), np.int64(3), dropout=np.float32(0.5))
    assert model(X.transpose(0, 1)).shape == (3, 3) and model.head.out_features == 3
    assert repr(model.lstm) == "LSTM(5, 7, num_layers=2, batch_first=True, dropout=0.5, peephole=True)"
    assert nn.LSTM(5, 7, np.int64(2), dropout=np.float32(0.5)).dropout == 0.5, "as in torch"


def test_dtype():
    for dtype in (torch.int64, torch.complex64, torch.float8_e4m3fn, "float32", np.float32):
        for cls in CLASSES:
            refused(lambda cls=cls, dtype=dtype: cls(5, 7, dtype=dtype), "dtype", "float")
    assert LSTM(5, 7, device=DEVICE, dtype=torch.float16).weight_ih_l0.dtype == torch.float16
