"""Weights of other libraries, given as plain arrays: neither Keras nor TensorFlow is needed for them.

Both write x W where PyTorch writes W x, and have one bias where PyTorch has two; here the second is zero.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lstm_fused.checks import bad
from lstm_fused.module import LSTM

Array = Any  # a Tensor, or whatever `torch.tensor` takes: arrays of numpy, lists
Layer = list[dict[str, Tensor]]  # for each direction its parameters, by the beginning of their names


def from_keras(*layers: Sequence[Array], batch_first: bool = True, engine: str | None = None) -> LSTM:
    """Make an LSTM of the weights of Keras layers, each over the outputs of the one before.

    Activations must be tanh and sigmoid, Keras 3's defaults; the order of the gates, i, f, c, o, is ours.

    Args:
        *layers: the ``get_weights()`` of each layer: of an LSTM, of one in a Bidirectional, or of an RNN of
            Keras 2's PeepholeLSTMCell. For each direction these are the kernel (I, 4H) and the recurrent
            kernel (H, 4H), then, where it has them, the bias (4H,) and the peepholes i, f, o of shape (H,).
        batch_first: as for `lstm_fused.LSTM`; Keras is.
        engine: as for `lstm_fused.LSTM`.

    Raises:
        ValueError: the arrays are not those of such layers.
    """
    return stack([keras_layer(arrays) for arrays in layers], batch_first, engine)


def from_tensorflow(
    *cells: Mapping[str, Array],
    forget_bias: float = 1.0,
    batch_first: bool = False,
    engine: str | None = None,
) -> LSTM:
    """Make an LSTM of the variables of TensorFlow 1's cells, each over the outputs of the one before.

    The cells are tf.compat.v1.nn.rnn_cell.LSTMCell and tf.contrib's LSTMBlockCell and LSTMBlockFusedCell,
    whose gates are in the order i, c, f, o; with no projection and no clipping of the cell.

    Args:
        *cells: the variables of each cell by name: ``kernel`` (I + H, 4H), ``bias`` (4H,), and with peepholes
            ``w_i_diag``, ``w_f_diag`` and ``w_o_diag`` (H,).
        forget_bias: what the cells add to b_f at every step, which is not in their variables.
        batch_first: as for `lstm_fused.LSTM`.
        engine: as for `lstm_fused.LSTM`.

    Raises:
        ValueError: the variables are not those of such cells.
    """
    return stack([[tensorflow_cell(cell, forget_bias)] for cell in cells], batch_first, engine)


def keras_layer(arrays: Sequence[Array]) -> Layer:
    """The parameters of a Keras layer."""
    tensors = [as_tensor(array) for array in arrays]
    starts = [at for at, tensor in enumerate(tensors) if tensor.dim() == 2][::2]
    layer: Layer = []
    for start, end in pairwise([*starts, len(tensors)]):
        kernel, *rest = tensors[start:end]
        H = kernel.shape[1] // 4
        shapes = [tuple(tensor.shape) for tensor in rest]
        bias, peepholes = [(4 * H,)], [(H,)] * 3
        if shapes not in [[(H, 4 * H), *vectors] for vectors in ([], bias, peepholes, bias + peepholes)]:
            raise bad(
                "layers", "kernel, recurrent kernel, bias and peepholes of Keras", [kernel.shape, *shapes]
            )
        weights = {"weight_ih": kernel.T, "weight_hh": rest[0].T}
        if bias[0] in shapes:
            weights |= biases(rest[1])
        if peepholes[0] in shapes:
            weights["weight_peephole"] = torch.cat(rest[-3:])
        layer.append(weights)
    return layer


def tensorflow_cell(cell: Mapping[str, Array], forget_bias: float) -> dict[str, Tensor]:
    """The parameters of a TensorFlow cell."""
    peepholes = ("w_i_diag", "w_f_diag", "w_o_diag")
    if cell.keys() not in ({"kernel", "bias"}, {"kernel", "bias", *peepholes}):
        raise bad("cells", "kernel and bias, or these and " + ", ".join(peepholes), sorted(cell))
    tensors = {name: as_tensor(array) for name, array in cell.items()}
    H = len(tensors["bias"]) // 4
    weight = reorder(tensors["kernel"].T, "igfo", "ifgo")  # [4H, I + H]
    bias = reorder(tensors["bias"], "igfo", "ifgo")
    bias[H : 2 * H] += forget_bias
    weights = {"weight_ih": weight[:, :-H], "weight_hh": weight[:, -H:], **biases(bias)}
    if "w_i_diag" in tensors:
        weights["weight_peephole"] = torch.cat([tensors[name] for name in peepholes])
    return weights


def stack(layers: Sequence[Layer], batch_first: bool, engine: str | None) -> LSTM:
    """The module of these layers."""
    if not layers or not all(layers):
        raise bad("layers", "weights of one layer at least", "none")
    weights = {
        f"{name}_l{k}{suffix}": value
        for k, layer in enumerate(layers)
        for suffix, direction in zip(("", "_reverse")[: len(layer)], layer, strict=True)
        for name, value in direction.items()
    }
    module = LSTM(
        weights["weight_ih_l0"].shape[1],
        weights["weight_hh_l0"].shape[1],
        len(layers),
        "bias_ih_l0" in weights,
        batch_first,
        bidirectional="weight_ih_l0_reverse" in weights,
        dtype=weights["weight_ih_l0"].dtype,
        peephole="weight_peephole_l0" in weights,
        engine=engine,
    )
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise bad("layers", "layers of one kind, each as wide as the one before", error) from None
    return module


def biases(bias: Tensor) -> dict[str, Tensor]:
    """One bias as PyTorch's two."""
    return {"bias_ih": bias, "bias_hh": torch.zeros_like(bias)}


def reorder(rows: Tensor, order: str, wanted: str) -> Tensor:
    """Put equal blocks of rows, named by the letters of ``order``, in the order ``wanted``."""
    blocks = dict(zip(order, rows.chunk(len(order)), strict=True))
    return torch.cat([blocks[gate] for gate in wanted])


def as_tensor(array: Array) -> Tensor:
    """A tensor of its own memory, for an array may be read-only."""
    return array.detach().cpu() if isinstance(array, Tensor) else torch.tensor(array)
