"""All checks of what users pass: each error names the argument, what was expected and what came."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lstm_fused.autocast import computed_in
from lstm_fused.reference import Variant
from lstm_fused.tracing import has_values

States = tuple[Tensor, Tensor]


def bad(argument: str, expected: str, got: object) -> ValueError:
    """The error every check raises."""
    return ValueError(f"{argument}: expected {expected}, got {got}")


def check_sizes(
    input_size: int, hidden_size: int, num_layers: int, dropout: float, proj_size: int, bidirectional: bool
) -> None:
    """Check the sizes a module is made with."""
    for argument, value in (
        ("input_size", input_size),
        ("hidden_size", hidden_size),
        ("num_layers", num_layers),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise bad(argument, "a positive integer", repr(value))
    if isinstance(proj_size, bool) or not isinstance(proj_size, int) or not 0 <= proj_size < hidden_size:
        raise bad("proj_size", f"an integer from 0 to less than hidden_size = {hidden_size}", repr(proj_size))
    check_probability("dropout", dropout)
    if not isinstance(bidirectional, bool):
        raise bad("bidirectional", "True or False", repr(bidirectional))


def check_variants(
    recurrent_dropout: float, zoneout_h: float, zoneout_c: float, cell_clip: float | None
) -> None:
    """Check how a module departs from the textbook."""
    for argument, value in (
        ("recurrent_dropout", recurrent_dropout),
        ("zoneout_h", zoneout_h),
        ("zoneout_c", zoneout_c),
    ):
        check_probability(argument, value)
    check_clip(cell_clip)


def check_parts(forget_bias: float | None, bias: bool, coupled: bool, layer_norm: bool) -> None:
    """Check the kinds of gates that a module is made with."""
    for argument, flag in (("coupled", coupled), ("layer_norm", layer_norm)):
        if not isinstance(flag, bool):
            raise bad(argument, "True or False", repr(flag))
    if coupled and layer_norm:
        raise bad("coupled", "False with layer_norm, after which 1 - f is no gate of its own", coupled)
    if forget_bias is None:
        return
    if isinstance(forget_bias, bool) or not isinstance(forget_bias, (int, float)):
        raise bad("forget_bias", "a number or None", repr(forget_bias))
    if not bias:
        raise bad("forget_bias", "None with bias=False", forget_bias)


def check_probability(argument: str, value: object) -> None:
    """Check that this is a probability."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise bad(argument, "a probability from 0 to 1", repr(value))


def check_clip(cell_clip: object) -> None:
    """Check the bound on c."""
    if cell_clip is None:
        return
    if isinstance(cell_clip, bool) or not isinstance(cell_clip, (int, float)) or not cell_clip > 0:
        raise bad("cell_clip", "a positive number or None", repr(cell_clip))


def check_tensor(argument: str, tensor: object, shape: tuple[int, ...], meaning: str, like: Tensor) -> None:
    """Check that ``tensor`` has this shape, and the device and (but for autocast) dtype of the input."""
    if not isinstance(tensor, Tensor):
        raise bad(argument, f"a tensor of shape {shape} = {meaning}", type(tensor).__name__)
    if tensor.shape != shape:
        raise bad(argument, f"shape {shape} = {meaning}", tuple(tensor.shape))
    if tensor.dtype != like.dtype and computed_in(tensor) != computed_in(like):
        raise bad(argument, f"{like.dtype} like the input", tensor.dtype)
    if tensor.device != like.device:
        raise bad(argument, f"device {like.device} like the input", tensor.device)


def check_input(input: object, ranks: tuple[int, ...], meaning: str, input_size: int) -> None:
    """Check that the input is a floating-point tensor of one of these ranks, ``input_size`` wide."""
    if not isinstance(input, Tensor):
        raise bad("input", f"a tensor {meaning}", type(input).__name__)
    if not input.is_floating_point():
        raise bad("input", "a floating-point dtype", input.dtype)
    if input.dim() not in ranks:
        raise bad("input", meaning, f"shape {tuple(input.shape)}")
    if input.shape[-1] != input_size:
        raise bad("input", f"{input_size} features in the last dimension", f"shape {tuple(input.shape)}")


def check_states(
    hx: object, shapes: tuple[tuple[int, ...], ...], meaning: tuple[str, str], like: Tensor
) -> None:
    """Check the pair of initial states."""
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        got = type(hx).__name__ + (f" of {len(hx)}" if isinstance(hx, (tuple, list)) else "")
        raise bad("hx", "a pair (h_0, c_0)", got)
    for argument, state, shape, what in zip(("hx[0]", "hx[1]"), hx, shapes, meaning, strict=True):
        check_tensor(argument, state, shape, what, like)


def check_lengths(lengths: object, batch: int, T: int) -> None:
    """Check the number of valid steps of each sequence."""
    if not isinstance(lengths, Tensor):
        raise bad("lengths", f"an integer tensor of shape ({batch},)", type(lengths).__name__)
    if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise bad("lengths", "an integer dtype", lengths.dtype)
    if lengths.shape != (batch,):
        raise bad("lengths", f"shape ({batch},) = (batch,)", tuple(lengths.shape))
    if batch == 0 or not has_values(lengths):
        return  # engines stop at T whatever they say
    inside = (lengths >= 0) & (lengths <= T)
    if lengths.is_cuda:
        # Reading the values would make the host wait for the GPU at every call.
        torch._assert_async(inside.all(), f"lengths: expected values from 0 to T = {T}")
    elif not inside.all():
        raise bad("lengths", f"values from 0 to T = {T}", lengths[~inside].tolist())


def check_layer(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    peephole: Tensor | None,
    weight_hr: Tensor | None,
    gain_ih: Tensor | None,
    hx: States | None,
    lengths: Tensor | None,
    variant: Variant,
) -> None:
    """Check everything `lstm_fused.lstm` takes."""
    for argument, weight in (("weight_ih", weight_ih), ("weight_hh", weight_hh)):
        if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.shape[0] % 4:
            got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise bad(argument, "a matrix of 4 * hidden_size rows", got)
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
    four, state, steps = (4 * H,), (B, P), (T, B, P)
    optional: tuple[tuple[str, Tensor | None, tuple[int, ...], str], ...] = (
        ("bias_ih", bias_ih, four, "(4 * hidden_size,)"),
        ("bias_hh", bias_hh, four, "(4 * hidden_size,)"),
        ("peephole", peephole, (3 * H,), "(3 * hidden_size,)"),
        ("gain_ih", gain_ih, four, "(4 * hidden_size,)"),
        ("gain_hh", variant.gain_hh, four, "(4 * hidden_size,)"),
        ("h_mask", variant.h_mask, state, "(B, proj_size or hidden_size)"),
        ("zoneout_h", variant.zoneout_h, steps, "(T, B, proj_size or hidden_size)"),
        ("zoneout_c", variant.zoneout_c, (T, B, H), "(T, B, hidden_size)"),
    )
    for argument, tensor, shape, meaning in optional:
        if tensor is not None:
            check_tensor(argument, tensor, shape, meaning, input)
    if (gain_ih is None) != (variant.gain_hh is None):
        raise bad("gain_ih and gain_hh", "both or none", "one of them")
    check_clip(variant.cell_clip)
    if hx is not None:
        check_states(hx, ((B, P), (B, H)), ("(B, proj_size or hidden_size)", "(B, hidden_size)"), input)
    if lengths is not None:
        check_lengths(lengths, B, T)


def check_parameters(parameters: Iterable[tuple[str, Tensor]], input: Tensor) -> None:
    """Check that a module's parameters share the input's device and dtype."""
    for argument, parameter in parameters:
        if parameter.dtype != input.dtype and computed_in(parameter) != computed_in(input):
            raise bad("input", f"{parameter.dtype} like the parameter {argument}", input.dtype)
        if parameter.device != input.device:
            raise bad("input", f"device {parameter.device} like the parameter {argument}", input.device)
