"""Errors of torch.nn.LSTM and LSTMCell are caught here by the same `except` clauses.

The cases follow PyTorch's tests of its RNNs. Its accidental AttributeError for an input that is no tensor and
IndexError for states that are no pair are a TypeError, ValueError and RuntimeError here.
"""

import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import lstm_fused
from lstm_fused import LSTM, ArgumentError, LSTMCell

X = torch.zeros(4, 3, 5)
BY_ACCIDENT = (AttributeError, IndexError)


def z(*shape):
    return torch.zeros(*shape)


# Arguments of the constructor, then of the call.
LAYERS = {
    "input rank": ({}, (z(5),)),
    "input of 4 dimensions": ({}, (z(1, 4, 3, 5),)),
    "input features": ({}, (z(4, 3, 6),)),
    "no features": ({}, (z(4, 3, 0),)),
    "input dtype": ({}, (X.double(),)),
    "integers": ({}, (X.long(),)),
    "input device": ({}, (X.to("meta"),)),
    "no tensor": ({}, ([1.0],)),
    "None": ({}, (None,)),
    "sparse": ({}, (X.to_sparse(),)),
    "hx rows": ({}, (X, (z(2, 3, 7), z(2, 3, 7)))),
    "hx batch": ({}, (X, (z(1, 2, 7), z(1, 2, 7)))),
    "hx batch of batch_first": ({"batch_first": True}, (X, (z(1, 3, 7), z(1, 3, 7)))),
    "h_0 width": ({}, (X, (z(1, 3, 8), z(1, 3, 7)))),
    "c_0 width": ({}, (X, (z(1, 3, 7), z(1, 3, 8)))),
    "h_0 width projected": ({"proj_size": 3}, (X, (z(1, 3, 7), z(1, 3, 7)))),
    "c_0 width projected": ({"proj_size": 3}, (X, (z(1, 3, 3), z(1, 3, 3)))),
    "hx rows of two layers": ({"num_layers": 2}, (X, (z(1, 3, 7), z(1, 3, 7)))),
    "hx rows of two directions": ({"bidirectional": True}, (X, (z(1, 3, 7), z(1, 3, 7)))),
    "hx rank": ({}, (X, (z(3, 7), z(3, 7)))),
    "hx rank of one sequence": ({}, (X[:, 0], (z(1, 1, 7), z(1, 1, 7)))),
    "hx a tensor": ({}, (X, z(1, 3, 7))),
    "hx three": ({}, (X, (z(1, 3, 7),) * 3)),
    "hx None": ({}, (X, (None, None))),
    "packed features": ({}, (PackedSequence(z(5, 6), torch.tensor([3, 2])),)),
    "packed hx": ({}, (PackedSequence(z(5, 5), torch.tensor([3, 2])), (z(1, 2, 7), z(1, 2, 7)))),
    "input_size 0": ({"input_size": 0}, ()),
    "hidden_size 0": ({"hidden_size": 0}, ()),
    "hidden_size negative": ({"hidden_size": -1}, ()),
    "hidden_size a string": ({"hidden_size": "7"}, ()),
    "hidden_size a float": ({"hidden_size": 7.0}, ()),
    "hidden_size None": ({"hidden_size": None}, ()),
    "num_layers 0": ({"num_layers": 0}, ()),
    "num_layers a string": ({"num_layers": "2"}, ()),
    "num_layers a float": ({"num_layers": 2.5}, ()),
    "bias a string": ({"bias": "no"}, ()),
    "batch_first a number": ({"batch_first": 1}, ()),
    "dropout": ({"num_layers": 2, "dropout": 1.5}, ()),
    "dropout negative": ({"num_layers": 2, "dropout": -0.5}, ()),
    "dropout a string": ({"num_layers": 2, "dropout": "0.5"}, ()),
    "dropout True": ({"num_layers": 2, "dropout": True}, ()),
    "dropout None": ({"num_layers": 2, "dropout": None}, ()),
    "proj_size negative": ({"proj_size": -1}, ()),
    "proj_size large": ({"proj_size": 7}, ()),
    "proj_size a string": ({"proj_size": "3"}, ()),
    "dtype integers": ({"dtype": torch.int64}, ()),
    "dtype a string": ({"dtype": "float32"}, ()),
    "device": ({"device": "nowhere"}, ()),
}
CELLS = {
    "input rank": ({}, (X,)),
    "input a number": ({}, (z(()),)),
    "input features": ({}, (z(3, 6),)),
    "input dtype": ({}, (X[0].double(),)),
    "input device": ({}, (X[0].to("meta"),)),
    "no tensor": ({}, ([1.0],)),
    "hx batch": ({}, (X[0], (z(2, 7), z(2, 7)))),
    "h_0 width": ({}, (X[0], (z(3, 8), z(3, 7)))),
    "c_0 width": ({}, (X[0], (z(3, 7), z(3, 8)))),
    "hx rank": ({}, (X[0], (z(1, 3, 7), z(1, 3, 7)))),
    "hx without a batch": ({}, (X[0], (z(7), z(7)))),
    "hx a tensor": ({}, (X[0], z(3, 7))),
    "hx three": ({}, (X[0], (z(3, 7),) * 3)),
    "hidden_size negative": ({"hidden_size": -1}, ()),
    "hidden_size a string": ({"hidden_size": "7"}, ()),
    "hidden_size a float": ({"hidden_size": 7.0}, ()),
    "input_size None": ({"input_size": None}, ()),
}


def raised(cls, options, arguments):
    """Return the error of a constructor or a call."""
    try:
        module = cls(**{"input_size": 5, "hidden_size": 7} | options)
        if arguments:
            module(*arguments)
    except Exception as error:
        return error
    pytest.fail(f"{cls} accepts {options}, {arguments}")


@pytest.mark.parametrize(
    ("theirs", "ours", "case"),
    [(nn.LSTM, LSTM, case) for case in LAYERS.items()] + [(nn.LSTMCell, LSTMCell, c) for c in CELLS.items()],
    ids=[f"LSTM-{name}" for name in LAYERS] + [f"LSTMCell-{name}" for name in CELLS],
)
def test_handlers_of_torch_errors_catch_ours(theirs, ours, case):
    name, (options, arguments) = case
    expected, found = raised(theirs, options, arguments), raised(ours, options, arguments)
    kind = TypeError if isinstance(expected, BY_ACCIDENT) else type(expected)
    assert isinstance(found, kind), f"{expected!r} there, {found!r} here"
    if name != "device":  # PyTorch itself refuses an invalid device
        assert isinstance(found, ArgumentError) and len(str(found).splitlines()) == 1, found


def test_all_errors_are_argument_errors():
    assert lstm_fused.ArgumentError is ArgumentError
    shape, kind = raised(LSTM, {}, (z(5),)), raised(LSTM, {"bias": "no"}, ())
    assert isinstance(shape, (ValueError, RuntimeError)) and not isinstance(shape, TypeError)
    for error in (shape, kind):
        for base in (ValueError, RuntimeError):
            with pytest.raises(base, match="expected"):
                raise error
        again = pickle.loads(pickle.dumps(error))  # as a DataLoader worker sends it
        assert type(again) is type(error) and str(again) == str(error)
    assert isinstance(kind, TypeError)
