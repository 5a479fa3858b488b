"""Models that hold the layers, as the tests trace them, and the comparison of a trace with its model."""

import io

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

from lstm_fused import LSTM

F64 = torch.float64
DEEP = {"num_layers": 2, "bidirectional": True}
OPTIONS = {
    "plain": {},
    "deep": {**DEEP, "batch_first": True, "proj_size": 3},
    "variants": {**DEEP, "layer_norm": True, "zoneout_h": 0.1, "zoneout_c": 0.2, "cell_clip": 0.3},
    "coupled": {"coupled": True, "bias": False, "engine": "reference"},
    "bare": {"bidirectional": True, "bias": False, "peephole": False},
}
SIZES = (5, 2), (7, 3), (1, 1), (2, 5)  # T, B


class Model(nn.Module):
    """A layer between others, whose call takes what is not None."""

    def __init__(self, **options):
        super().__init__()
        self.before, self.lstm = nn.Linear(3, 3, dtype=F64), LSTM(3, 4, dtype=F64, **options)

    def forward(self, x, lengths=None, h=None, c=None):
        y, (h_n, c_n) = self.lstm(self.before(x), None if h is None else (h, c), lengths)
        return y.sin(), h_n, c_n


class Packed(Model):
    """The same over packed sequences, in any order or sorted."""

    enforce_sorted = False

    def forward(self, x, lengths, h=None, c=None):
        first = self.lstm.batch_first
        packed = pack_padded_sequence(self.before(x), lengths, first, self.enforce_sorted)
        y, (h_n, c_n) = self.lstm(packed, None if h is None else (h, c))
        return pad_packed_sequence(y, first)[0].sin(), h_n, c_n


class Sorted(Packed):
    enforce_sorted = True


def make(kind=Model, **options):
    torch.manual_seed(0)
    return kind(**options).eval()


def inputs(model, T, B, count):
    """The first ones of x, lengths, h_0, c_0."""
    layer = model.lstm
    rows, H = layer.num_layers * layer.num_directions, layer.hidden_size
    x = torch.randn(*((B, T) if layer.batch_first else (T, B)), 3, dtype=F64)
    lengths = torch.arange(B).flip(0) % (T + 1)
    if isinstance(model, Packed):
        lengths = T - torch.arange(B) % T if B > 1 else torch.tensor([T])
        lengths = lengths.sort(descending=True).values if model.enforce_sorted else lengths.flip(0)
    states = torch.randn(rows, B, layer.proj_size or H, dtype=F64), torch.randn(rows, B, H, dtype=F64)
    return (x, lengths, *states)[:count]


def saved(traced):
    """What torch.jit.load makes of the file of a program."""
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def outcome(function, args, parameters):
    """The outputs and the gradients of a sum of them, in each floating-point argument and in parameters."""
    args = [each.detach().requires_grad_() if each.is_floating_point() else each for each in args]
    outputs = tree_leaves(function(*args))
    loss = sum((each.sin() * torch.arange(each.numel()).view_as(each).cos()).sum() for each in outputs)
    leaves = [*(each for each in args if each.requires_grad), *parameters]
    return outputs, torch.autograd.grad(loss, leaves, allow_unused=True)


def check_traced(function, given, sizes=SIZES, recording=True):
    """Check a trace made at the first size, before and after it was saved, at all sizes against eager."""
    with torch.set_grad_enabled(recording):
        traced = torch.jit.trace(function, given(*sizes[0]))
    own = dict(function.named_parameters()) if isinstance(function, nn.Module) else {}
    for program in (traced, saved(traced)):
        named = dict(program.named_parameters()) if own else {}
        assert named.keys() == own.keys()
        for size in sizes:
            args = given(*size)
            expected = outcome(function, args, own.values())
            same(outcome(program, args, [named[name] for name in own]), expected)
