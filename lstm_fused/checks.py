"""Checks of the tensors that users pass; an error names the argument, what is expected and what was given."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_fused.autograd.autocast import computed_in
from lstm_fused.autograd.tracing import has_values
from lstm_fused.backends import table
from lstm_fused.contract import SPECS, Variant
from lstm_fused.errors import bad as bad  # re-exported
from lstm_fused.errors import bad_type, shown
from lstm_fused.layers.parameters import Parameters

States = tuple[Tensor, Tensor]
MEANINGS = {
    "T": "T",
    "B": "B",
    "H": "hidden_size",
    "P": "proj_size or hidden_size",
    "3": "3",
    "4H": "4 * hidden_size",
}


def check_tensor(argument: str, tensor: object, shape: tuple[int, ...], meaning: str, like: Tensor) -> None:
    """Check that ``tensor`` has this shape, the input's device and, except under autocast, its dtype."""
    tensor = dense(argument, tensor, shape, f" = {meaning}")
    if tensor.dtype != like.dtype and computed_in(tensor) != computed_in(like):
        raise bad(argument, f"{like.dtype} like the input", tensor.dtype)
    if tensor.device != like.device:
        raise bad(argument, f"device {like.device} like the input", tensor.device)


def dense(argument: str, tensor: object, shape: tuple[int, ...], meaning: str = "") -> Tensor:
    """Return ``tensor`` if it is a dense tensor of this shape; error messages have ``meaning`` after it."""
    if not isinstance(tensor, Tensor):
        raise bad_type(argument, f"a tensor of shape {shape}{meaning}", type(tensor).__name__)
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise not_dense(argument, tensor)
    if tensor.shape != shape:
        raise bad(argument, f"shape {shape}{meaning}", tuple(tensor.shape))
    return tensor


def not_dense(argument: str, tensor: Tensor) -> Exception:
    """The error for a sparse or nested tensor. Callers test inline, which is faster than a call."""
    kind = "nested" if tensor.is_nested else table.short(tensor.layout)
    return bad(argument, "a dense tensor", f"a {kind} one")


def check_kind(input: Tensor) -> None:
    """Check that the input is dense and of a floating-point dtype."""
    if input.layout is not torch.strided or input.is_nested:
        raise not_dense("input", input)
    if not input.is_floating_point():
        raise bad("input", "a floating-point dtype", input.dtype)


def check_input(input: object, ranks: tuple[int, ...], meaning: str, input_size: int) -> None:
    """Check that the input is a floating-point tensor of one of these ranks with ``input_size`` features."""
    if not isinstance(input, Tensor):
        raise bad_type("input", f"a tensor {meaning}", type(input).__name__)
    check_kind(input)
    if input.dim() not in ranks:
        raise bad("input", f"a tensor {meaning}", f"shape {tuple(input.shape)}")
    if input.shape[-1] != input_size:
        raise bad("input", f"{input_size} features in the last dimension", f"shape {tuple(input.shape)}")


def check_states(
    hx: object, shapes: tuple[tuple[int, ...], ...], meaning: tuple[str, str], like: Tensor
) -> None:
    """Check the pair of initial states."""
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        got = type(hx).__name__ + (f" of {len(hx)}" if isinstance(hx, (tuple, list)) else "")
        raise bad_type("hx", "a pair (h_0, c_0)", got)
    check_tensor("hx[0]", hx[0], shapes[0], meaning[0], like)
    check_tensor("hx[1]", hx[1], shapes[1], meaning[1], like)


def check_lengths(lengths: object, batch: int, T: int) -> None:
    """Check the number of valid steps of each sequence."""
    if not isinstance(lengths, Tensor):
        raise bad_type("lengths", f"an integer tensor of shape ({batch},)", type(lengths).__name__)
    if lengths.layout is not torch.strided or lengths.is_nested:
        raise not_dense("lengths", lengths)
    if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise bad("lengths", "an integer dtype", lengths.dtype)
    if lengths.shape != (batch,):
        raise bad("lengths", f"shape ({batch},) = (batch,)", tuple(lengths.shape))
    if batch == 0 or not has_values(lengths):
        return  # engines stop at T whatever the values
    inside = (lengths >= 0) & (lengths <= T)
    if lengths.is_cuda:
        # Reading the values would make the host wait for the GPU at every call.
        torch._assert_async(inside.all(), f"lengths: expected values from 0 to T = {T}")
    elif not inside.all():
        raise bad("lengths", f"values from 0 to T = {T}", lengths[~inside].tolist())


def check_shares(argument: str, shares: Tensor) -> None:
    """Check that the values are from 0 to 1, if they can be read."""
    if not has_values(shares):
        return
    inside = (shares >= 0) & (shares <= 1)  # False for NaN
    if shares.is_cuda:
        torch._assert_async(inside.all(), f"{argument}: expected values from 0 to 1")
    elif not inside.all():
        raise bad(argument, "values from 0 to 1", f"{shares[~inside][0].item():g}")


def check_packed(packed: PackedSequence) -> None:
    """Check the fields of a PackedSequence: PyTorch accepts any, and then reads out of bounds."""
    data: Any
    batch_sizes: Any
    data, batch_sizes, order, back = packed
    expected = "a PackedSequence whose "
    if not isinstance(data, Tensor) or not isinstance(batch_sizes, Tensor):
        got = f"{type(data).__name__} and {type(batch_sizes).__name__}"
        raise bad_type("input", expected + "data and batch_sizes are tensors", got)
    if batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1 or batch_sizes.device.type != "cpu":
        got = f"{batch_sizes.dtype} of shape {tuple(batch_sizes.shape)} on {batch_sizes.device}"
        raise bad("input", expected + "batch_sizes are a vector of int64 on the CPU", got)
    if (order is None) != (back is None):
        raise bad("input", expected + "sorted_indices and unsorted_indices are both None or neither", "one")
    if not has_values(batch_sizes):
        return
    sizes = batch_sizes.tolist()
    if not sizes or sizes[-1] < 1 or any(a < b for a, b in pairwise(sizes)):
        raise bad("input", expected + "batch_sizes are positive and non-increasing", shown(sizes))
    if sum(sizes) != len(data):
        raise bad("input", expected + f"batch_sizes add up to its {len(data)} steps", sum(sizes))
    if order is None or back is None:
        return
    for name, indices in (("sorted_indices", order), ("unsorted_indices", back)):
        if not isinstance(indices, Tensor) or indices.dtype not in (torch.int64, torch.int32):
            got = str(getattr(indices, "dtype", type(indices).__name__))
            raise bad_type("input", expected + f"{name} are an integer tensor", got)
        if indices.shape != (sizes[0],) or indices.device != data.device:
            got = f"shape {tuple(indices.shape)} on {indices.device}"
            raise bad("input", expected + f"{name} have shape ({sizes[0]},) on {data.device}", got)
    if order.is_cuda:
        return  # CUDA kernels assert that indices are within range
    if order.sort().values.tolist() != list(range(sizes[0])) or order.argsort().tolist() != back.tolist():
        got = f"{shown(order.tolist())} and {shown(back.tolist())}"
        raise bad("input", expected + "sorted_indices and unsorted_indices are inverse permutations", got)


def check_torch(argument: str, module: object, kind: type[nn.LSTM] | type[nn.LSTMCell]) -> None:
    """Check that this is torch's module, with its own forward and parameters of one dtype and device."""
    expected = f"a torch.nn.{kind.__name__}"
    if not isinstance(module, kind):
        name = type(module).__name__
        ours = type(module).__module__.startswith("lstm_fused.")  # which has the same name
        raise bad_type(argument, expected, f"lstm_fused.{name}" if ours else name)
    if type(module).forward is not kind.forward:
        raise bad(argument, expected, f"{type(module).__name__}, a subclass that overrides forward")
    if len(kinds := {f"{parameter.dtype} on {parameter.device}" for parameter in module.parameters()}) != 1:
        raise bad(argument, "parameters of one dtype on one device", " and ".join(sorted(kinds)) or "none")


def check_layer(
    input: Tensor, own: Parameters, hx: States | None, lengths: Tensor | None, variant: Variant
) -> None:
    """Check the arguments of `lstm_fused.lstm`."""
    weight_ih, weight_hh, weight_hr = own.weight_ih, own.weight_hh, own.weight_hr
    for argument, weight in (("weight_ih", weight_ih), ("weight_hh", weight_hh)):
        expected = "a matrix of 4 * hidden_size rows"
        if not isinstance(weight, Tensor):
            raise bad_type(argument, expected, type(weight).__name__)
        if weight.is_nested:
            raise not_dense(argument, weight)
        if weight.dim() != 2 or weight.shape[0] % 4:
            raise bad(argument, expected, tuple(weight.shape))
    check_input(input, (3,), "of 3 dimensions (T, B, I)", weight_ih.shape[1])
    T, B, I = input.shape
    H = weight_ih.shape[0] // 4
    P = weight_hh.shape[1]
    check_tensor("weight_ih", weight_ih, (4 * H, I), "(4 * hidden_size, input_size)", input)
    if weight_hr is None:
        check_tensor("weight_hh", weight_hh, (4 * H, H), "(4 * hidden_size, hidden_size)", input)
    else:
        check_tensor("weight_hh", weight_hh, (4 * H, P), "(4 * hidden_size, proj_size)", input)
        check_tensor("weight_hr", weight_hr, (P, H), "(proj_size, hidden_size)", input)
        if P >= H:
            raise bad("weight_hr", f"fewer rows than hidden_size = {H}", P)
    sizes = {"T": T, "B": B, "H": H, "P": P, "3": 3, "4H": 4 * H}
    optional: dict[str, tuple[Any, str]] = {
        "bias_ih": (own.bias_ih, "bias_ih"),
        "bias_hh": (own.bias_hh, "bias_hh"),
        "peephole": (own.peephole, "peephole"),
        "gain_ih": (own.gain_ih, "gain_hh"),
    }
    optional |= {name: (value, name) for name, value in variant._asdict().items() if name in SPECS}
    for argument, (tensor, field) in optional.items():
        if tensor is not None:
            dims = SPECS[field].dims.split()
            shape, meaning = tuple(sizes[dim] for dim in dims), ", ".join(MEANINGS[dim] for dim in dims)
            check_tensor(argument, tensor, shape, f"({meaning}{',' * (len(dims) == 1)})", input)
    if (own.gain_ih is None) != (own.gain_hh is None):
        raise bad("gain_ih and gain_hh", "both or none", "one of them")
    if variant.zoneout_h is not None:
        check_shares("zoneout_h", variant.zoneout_h)
    if variant.zoneout_c is not None:
        check_shares("zoneout_c", variant.zoneout_c)
    if hx is not None:
        check_states(hx, ((B, P), (B, H)), ("(B, proj_size or hidden_size)", "(B, hidden_size)"), input)
    if lengths is not None:
        check_lengths(lengths, B, T)


def check_parameter(name: str, parameter: object, shape: tuple[int, ...], input: Tensor) -> None:
    """Check a module's parameter, which users may replace by any tensor.

    Args:
        name: its name.
        parameter: the parameter.
        shape: its shape.
        input: tensor whose dtype and device it must have.
    """
    check_alike(name, dense(name, parameter, shape), input)


def check_alike(name: str, parameter: Tensor, input: Tensor) -> None:
    """Check that the input has a parameter's device and, except under autocast, its dtype."""
    if parameter.dtype != input.dtype and computed_in(parameter) != computed_in(input):
        raise bad("input", f"{parameter.dtype} like the parameter {name}", input.dtype)
    if parameter.device != input.device:
        raise bad("input", f"device {parameter.device} like the parameter {name}", input.device)
