"""Errors that depend on values: zoneout masks and the contents of a PackedSequence."""

import pytest
import torch
from test_errors import X, check, layer, zeros
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence

import lstm_fused

SHARES = {"zoneout_h": (2.0, "2"), "zoneout_c": (-1.0, "-1"), "both": (float("nan"), "nan")}


@pytest.mark.parametrize("name", SHARES)
def test_zoneout_must_be_from_0_to_1(name):
    # On the CPU, because a device-side assertion would end the process.
    value, got = SHARES[name]
    names = ("zoneout_h", "zoneout_c") if name == "both" else (name,)
    x, weights = X.cpu(), (torch.zeros(28, 5, device="cpu"), torch.zeros(28, 7, device="cpu"))
    shares = torch.full((4, 3, 7), 0.5, device="cpu")
    lstm_fused.lstm(x, *weights, **dict.fromkeys(names, shares))
    shares[2, 1, 3] = value
    check(
        lambda: lstm_fused.lstm(x, *weights, **dict.fromkeys(names, shares)),
        f"{names[0]}: expected values from 0 to 1",
        got,
    )


@pytest.mark.filterwarnings(
    "ignore:.*deprecated:DeprecationWarning", "ignore:.*should not be instantiated:DeprecationWarning"
)
def test_zoneout_without_values_is_not_read():
    weights, shares = (zeros(28, 5), zeros(28, 7)), zeros(4, 3, 7)

    def run(x, shares, *weights):
        return lstm_fused.lstm(x, *weights, zoneout_h=shares)[0]

    assert torch.vmap(lambda x, shares: run(x, shares, *weights))(X[None], shares[None]).shape == (1, 4, 3, 7)
    assert torch.func.jvp(lambda x: run(x, shares, *weights), (X,), (X,))[1].shape == (4, 3, 7)
    assert torch.compile(run, fullgraph=True, backend="aot_eager")(X, shares, *weights).shape == (4, 3, 7)
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(run, tracing_mode=mode)(X, shares, *weights)
        assert graph(X, shares, *weights).shape == (4, 3, 7)
    meta = [t.to("meta") for t in (X, *weights, shares)]
    assert lstm_fused.lstm(*meta[:3], zoneout_c=meta[3])[0].is_meta
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (X, *weights, shares)]
        assert lstm_fused.lstm(*fake[:3], zoneout_h=fake[3])[0].shape == (4, 3, 7)


STEPS = torch.zeros(5, 5)


def packed(batch_sizes, order=None, back=None, data=STEPS):
    """Construct a PackedSequence from its fields."""
    parts = (
        p if isinstance(p, torch.Tensor) or p is None else torch.tensor(p, device="cpu")
        for p in (order, back)
    )
    return PackedSequence(data, torch.as_tensor(batch_sizes, device="cpu"), *parts)


PACKED_ERRORS = {
    "negative": (([3, -2, 4],), "batch_sizes are positive and non-increasing", "[3, -2, 4]"),
    "zero": (([3, 2, 0],), "batch_sizes are positive and non-increasing", "[3, 2, 0]"),
    "growing": (([2, 3],), "batch_sizes are positive and non-increasing", "[2, 3]"),
    "none": ((torch.zeros(0, dtype=torch.int64),), "batch_sizes are positive and non-increasing", "[]"),
    "too many": (([3, 3],), "batch_sizes add up to its 5 steps", "6"),
    "too few": (([3, 1],), "batch_sizes add up to its 5 steps", "4"),
    "rank": (([[3, 2]],), "batch_sizes are a vector of int64", "torch.int64 of shape (1, 2) on cpu"),
    "dtype": (([3.0, 2.0],), "batch_sizes are a vector of int64", "torch.float32 of shape (2,) on cpu"),
    "int32": (
        (torch.tensor([3, 2], dtype=torch.int32),),
        "batch_sizes are a vector of int64",
        "torch.int32 of shape (2,) on cpu",
    ),
    "out of range": (([3, 2], [0, 1, 3], [0, 1, 2]), "inverse permutations", "[0, 1, 3] and [0, 1, 2]"),
    "negative index": (([3, 2], [0, 1, -1], [0, 1, 2]), "inverse permutations", "[0, 1, -1] and [0, 1, 2]"),
    "back out of range": (([3, 2], [0, 1, 2], [0, 1, 3]), "inverse permutations", "[0, 1, 2] and [0, 1, 3]"),
    "twice": (([3, 2], [0, 1, 1], [0, 1, 2]), "inverse permutations", "[0, 1, 1] and [0, 1, 2]"),
    "no inverse": (([3, 2], [1, 2, 0], [1, 2, 0]), "inverse permutations", "[1, 2, 0] and [1, 2, 0]"),
    "back alone": (([3, 2], None, [0, 1, 2]), "are both None or neither", "one"),
    "length": (([3, 2], [0, 1], [0, 1]), "sorted_indices have shape (3,) on cpu", "shape (2,) on cpu"),
    "floats": (([3, 2], [0.0, 1.0, 2.0], [0, 1, 2]), "sorted_indices are an integer tensor", "torch.float32"),
}


@pytest.mark.parametrize("name", PACKED_ERRORS)
def test_invalid_packed_sequences_are_refused(name):
    parts, expected, got = PACKED_ERRORS[name]
    module = layer(device="cpu")
    broken = packed(*parts, data=STEPS.cpu())
    for call in (lambda: module(broken), lambda: module(broken, (torch.zeros(1, 3, 7),) * 2)):
        check(call, "input: expected a PackedSequence whose ", got)
        check(call, expected, got)


def test_packed_sequences_must_contain_tensors():
    broken = tuple.__new__(PackedSequence, (STEPS, [3, 2], None, None))
    check(lambda: layer()(broken), "data and batch_sizes are tensors", "Tensor and list")
