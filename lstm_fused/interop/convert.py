"""Imports weights of Keras and TensorFlow, given as plain arrays; neither library is needed.

Both compute x W where PyTorch computes W x, and have one bias where PyTorch has two; the second becomes zero.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lstm_fused.errors import bad
from lstm_fused.layers.lstm import LSTM

Array = Any  # a Tensor, or what `torch.tensor` accepts: numpy arrays, lists
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PEEPHOLES = ("w_i_diag", "w_f_diag", "w_o_diag")
Layer = list[dict[str, Tensor]]  # the parameters of each direction, by name without the suffix


def from_keras(*layers: Sequence[Array], batch_first: bool = True, engine: str | None = None) -> LSTM:
    """Make an LSTM from the weights of Keras layers, each over the outputs of the one before.

    Activations must be tanh and sigmoid, Keras 3's defaults; the gate order i, f, c, o is the same as ours.

    Args:
        *layers: the ``get_weights()`` of each layer: of an LSTM, of one in a Bidirectional, or of an RNN of
            Keras 2's PeepholeLSTMCell. For each direction these are the kernel (I, 4H) and the recurrent
            kernel (H, 4H), then, if present, the bias (4H,) and the peepholes i, f, o of shape (H,).
        batch_first: as for `lstm_fused.LSTM`; Keras is batch-first.
        engine: as for `lstm_fused.LSTM`.

    Raises:
        ValueError: the arrays are not those of such layers, or not of one floating-point dtype.

    Examples:
        >>> kernel, recurrent, bias = torch.randn(28, 256), torch.randn(64, 256), torch.zeros(256)
        >>> from_keras([kernel, recurrent, bias]).hidden_size
        64
    """
    return stack("layers", [keras_layer(arrays) for arrays in layers], batch_first, engine)


def from_tensorflow(
    *cells: Mapping[str, Array],
    forget_bias: float = 1.0,
    batch_first: bool = False,
    engine: str | None = None,
) -> LSTM:
    """Make an LSTM from the variables of TensorFlow 1's cells, each over the outputs of the one before.

    The cells are tf.compat.v1.nn.rnn_cell.LSTMCell and tf.contrib's LSTMBlockCell and LSTMBlockFusedCell,
    whose gate order is i, c, f, o, without projection or cell clipping.

    Args:
        *cells: the variables of each cell by name: ``kernel`` (I + H, 4H), ``bias`` (4H,), and with peepholes
            ``w_i_diag``, ``w_f_diag`` and ``w_o_diag`` (H,).
        forget_bias: constant that the cells add to b_f at every step; it is not in their variables.
        batch_first: as for `lstm_fused.LSTM`.
        engine: as for `lstm_fused.LSTM`.

    Raises:
        ValueError: the variables are not those of such cells, or not of one floating-point dtype, or
            forget_bias is not a finite number.

    Examples:
        >>> lstm = from_tensorflow({"kernel": torch.randn(28 + 64, 256), "bias": torch.zeros(256)})
        >>> lstm.input_size, lstm.hidden_size, lstm.peephole
        (28, 64, False)
    """
    number: object = forget_bias  # may be a NumPy number
    if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
        raise bad("forget_bias", "a finite number", repr(forget_bias))
    layers = [[tensorflow_cell(cell, float(forget_bias))] for cell in cells]
    return stack("cells", layers, batch_first, engine)


def keras_layer(arrays: Sequence[Array]) -> Layer:
    """The parameters of a Keras layer."""
    if not isinstance(arrays, (list, tuple)):
        raise bad("layers", "a list of arrays for each layer, as of get_weights()", type(arrays).__name__)
    tensors = [as_tensor("layers", array) for array in arrays]
    given = [tuple(tensor.shape) for tensor in tensors]
    starts = [n for n, shape in enumerate(given) if len(shape) == 2][::2]
    if tensors and (starts[:1] != [0] or len(starts) > 2):
        raise bad("layers", "kernel, recurrent kernel, bias and peepholes of one or two directions", given)
    layer: Layer = []
    for start, end in pairwise([*starts, len(tensors)]):
        kernel, *rest = tensors[start:end]
        I, H = kernel.shape[0], kernel.shape[1] // 4
        shapes = given[start:end]
        matrices, bias, peepholes = [(I, 4 * H), (H, 4 * H)], [(4 * H,)], [(H,)] * 3
        kinds = [[*matrices, *vectors] for vectors in ([], bias, peepholes, bias + peepholes)]
        if shapes not in kinds or min(I, H) < 1:
            wanted = "kernel, recurrent kernel, bias and peepholes: (I, 4H), (H, 4H), (4H,) and 3 (H,)"
            raise bad("layers", wanted, shapes)
        weights = {"weight_ih": kernel.T, "weight_hh": rest[0].T}
        if bias[0] in shapes:
            weights |= biases(rest[1])
        if peepholes[0] in shapes:
            weights["weight_peephole"] = torch.stack(one_dtype("layers", rest[-3:]))
        layer.append(weights)
    return layer


def tensorflow_cell(cell: Mapping[str, Array], forget_bias: float) -> dict[str, Tensor]:
    """The parameters of a TensorFlow cell."""
    if not isinstance(cell, Mapping):
        raise bad("cells", "the variables of each cell by name", type(cell).__name__)
    if cell.keys() not in ({"kernel", "bias"}, {"kernel", "bias", *PEEPHOLES}):
        raise bad("cells", "kernel and bias, or these and " + ", ".join(PEEPHOLES), list(cell))
    tensors = {name: as_tensor("cells", array) for name, array in cell.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    rows = shapes["kernel"][0] if shapes["kernel"] else 0
    H = shapes["bias"][0] // 4 if shapes["bias"] else 0
    expected = {"kernel": (rows, 4 * H), "bias": (4 * H,), **dict.fromkeys(PEEPHOLES, (H,))}
    if shapes != {name: expected[name] for name in shapes} or not 1 <= H < rows:
        wanted = "kernel (I + H, 4H), bias (4H,), and peepholes (H,)"
        raise bad("cells", wanted, ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
    one_dtype("cells", tensors.values())
    weight = reorder(tensors["kernel"].T, "igfo", "ifgo")  # [4H, I + H]
    bias = reorder(tensors["bias"], "igfo", "ifgo")
    bias[H : 2 * H] += forget_bias
    weights = {"weight_ih": weight[:, :-H], "weight_hh": weight[:, -H:], **biases(bias)}
    if PEEPHOLES[0] in tensors:
        weights["weight_peephole"] = torch.stack([tensors[name] for name in PEEPHOLES])
    return weights


def stack(argument: str, layers: Sequence[Layer], batch_first: bool, engine: str | None) -> LSTM:
    """The module made of these layers, which are the value of this argument."""
    if not layers or not all(layers):
        raise bad(argument, "the weights of at least one layer", "none")
    weights = {
        f"{name}_l{k}{suffix}": value
        for k, layer in enumerate(layers)
        for suffix, direction in zip(("", "_reverse")[: len(layer)], layer, strict=True)
        for name, value in direction.items()
    }
    one_dtype(argument, weights.values())
    rows, H = weights["weight_hh_l0"].shape
    module = LSTM(
        weights["weight_ih_l0"].shape[1],
        H,
        len(layers),
        "bias_ih_l0" in weights,
        batch_first,
        bidirectional="weight_ih_l0_reverse" in weights,
        dtype=weights["weight_ih_l0"].dtype,
        peephole="weight_peephole_l0" in weights,
        coupled=rows == 3 * H,
        engine=engine,
    )
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in expected | weights:
        found = tuple(weights[name].shape) if name in weights else "none"
        if found != expected.get(name, "none"):
            got = f"{name} {found} where the first layer asks for {expected.get(name, 'none')}"
            raise bad(argument, "layers of one kind, each fed by the one before", got)
    module.load_state_dict(weights)
    return module


def one_dtype(argument: str, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Check that all have one floating-point dtype."""
    tensors = list(tensors)
    dtypes = sorted({str(tensor.dtype) for tensor in tensors})
    if len(dtypes) > 1 or tensors[0].dtype not in DTYPES:
        raise bad(argument, "arrays of one floating-point dtype", ", ".join(dtypes))
    return tensors


def biases(bias: Tensor) -> dict[str, Tensor]:
    """PyTorch's two biases from one."""
    return {"bias_ih": bias, "bias_hh": torch.zeros_like(bias)}


def reorder(rows: Tensor, order: str, wanted: str) -> Tensor:
    """Put equal blocks of rows, named by the letters of ``order``, in the order ``wanted``."""
    blocks = dict(zip(order, rows.chunk(len(order)), strict=True))
    return torch.cat([blocks[gate] for gate in wanted])


def as_tensor(argument: str, array: Array) -> Tensor:
    """The array as a CPU tensor; other arrays than tensors are copied, because they may be read-only."""
    if isinstance(array, Tensor):
        if array.layout != torch.strided or array.is_meta or array.is_quantized:
            raise bad(argument, "dense tensors", f"one of {array.layout} on {array.device}")
        return array.detach().cpu()
    try:
        return torch.tensor(array)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise bad(argument, "arrays of numbers", f"{type(array).__name__}: {error}") from None
