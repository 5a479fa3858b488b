"""The peephole LSTM in plain PyTorch: the specification every engine is tested against.

Equations: F. Gers and J. Schmidhuber, "Recurrent nets that time and count" (IJCNN 2000), in the
notation of A. Graves, "Generating sequences with recurrent neural networks" (2013), eqs. 7-11::

    a_t = W_ih x_t + W_hh h_{t-1} + b                      [4H], in the order i, f, g, o
    i_t = sigmoid(a_i + p_i * c_{t-1})                     let in
    f_t = sigmoid(a_f + p_f * c_{t-1})                     keep
    g_t = tanh   (a_g)
    c_t = f_t * c_{t-1} + i_t * g_t                        no weight stands on this path
    o_t = sigmoid(a_o + p_o * c_t)                         show
    h_t = o_t * tanh(c_t)                                  (W_hr times that, with a projection)

The backward pass is full backpropagation through time, through the peepholes too; the older papers
truncate the gradient there.

Half precision: products and sums are float32, h is rounded to the tensor's dtype at every step, c never.
A sequence stops at its length: later outputs and gates are zero, the states are those of its last step,
and the reverse direction starts at that step.

Variants, alone or combined; with a projection, h is the projected state (docs/variants.md has the papers)::

    recurrent dropout  W_hh (mask * h_{t-1}), one mask for all steps; the product in parentheses in h's dtype
    layer norm         gain * (W_hh h_{t-1} - mean) / sqrt(variance + 1e-5) in place of W_hh h_{t-1}, mean and
                       variance over its 4H elements; W_ih x_t is normalized so before the recurrence
    cell clip          c_t is min(max(f_t * c_{t-1} + i_t * g_t, -clip), clip), for o_t and h_t too
    zoneout            z_h * h_{t-1} + (1 - z_h) * h_t in place of h_t, and z_c * c_{t-1} + (1 - z_c) * c_t in
                       place of c_t, as the last operation: o_t and tanh use c_t from before it
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lstm_fused.contract import Factors, Gradients, Inputs, OutputGradients, Outputs, Products, Saved

EPS = 1e-5  # torch.nn.LayerNorm's


def forward(inputs: Inputs) -> Outputs:
    """Run one layer in one direction over the whole sequence, by the equations above."""
    x, h0, c0, lengths, variant = inputs.x, inputs.h0, inputs.c0, inputs.lengths, inputs.variant
    T, B, _ = x.shape
    H, P = c0.shape[1], h0.shape[1]
    mask, wide = variant.h_mask, accumulation_dtype(x.dtype)
    W_hh, W_hr, p, gain = widened(wide, inputs.weight_hh, inputs.weight_hr, inputs.peephole, variant.gain_hh)
    if lengths is not None:
        # Padding may hold NaN, and 0 * NaN would reach the gradients.
        x = torch.where(is_valid(lengths, T), x, torch.zeros_like(x))
    xw = input_products(x, inputs.weight_ih, inputs.bias)

    h, c = h0.clone(), c0.to(wide)
    ys, cs, gates = [h] * T, [c] * T, [c] * T
    for t in time_steps(T, inputs.reverse):
        hw = (h if mask is None else h * mask).to(wide) @ W_hh.T  # [B, 4H]
        a = xw[t] + (hw if gain is None else layer_norm(hw, gain))
        m, c_t, gates[t] = cell_forward(a, c, p, variant.cell_clip)
        h_t = m if W_hr is None else m @ W_hr.T
        h_t = zone_out(h_t, h, variant.zoneout_h, t).to(x.dtype)
        c_t = zone_out(c_t, c, variant.zoneout_c, t)
        if lengths is None:
            ys[t], h, c = h_t, h_t, c_t
        else:
            valid = (t < lengths)[:, None]
            ys[t], gates[t] = if_valid(h_t, lengths, t), if_valid(gates[t], lengths, t)
            h, c = torch.where(valid, h_t, h), torch.where(valid, c_t, c)
        cs[t] = c

    def over_time(steps: list[Tensor], *shape: int) -> Tensor:
        return torch.stack(steps) if T else c.new_empty(0, *shape)

    return Outputs(
        over_time(ys, B, P).to(x.dtype),
        h.clone(),
        c.to(x.dtype, copy=True),
        over_time(cs, B, H) if inputs.save else c.new_empty(0),
        over_time(gates, B, 4 * H).to(x.dtype) if inputs.save else x.new_empty(0),
    )


def input_products(x: Tensor, weight_ih: Tensor | None, bias: Tensor | None) -> Tensor:
    """W_ih x_t + b of all steps, [T, B, 4H], in the accumulation dtype."""
    wide = accumulation_dtype(x.dtype)
    b = None if bias is None else bias.to(wide)
    if weight_ih is None:
        return x.to(wide) if b is None else x.to(wide) + b
    # One product for all steps. In float64 one per step: a sequence in pieces must equal the whole one bit
    # for bit, and a library's rounding depends on the number of rows and their alignment.
    pieces = [piece.clone() for piece in x.split(1)] if wide == torch.float64 else [x]
    return torch.cat([F.linear(piece.to(wide), weight_ih.to(wide), b) for piece in pieces])


def backward(saved: Saved, douts: OutputGradients) -> Gradients:
    """Propagate the gradients of y, h_n and c_n back through the whole sequence."""
    gates, lengths, reverse, variant, hw = saved.gates, saved.lengths, saved.reverse, saved.variant, saved.hw
    T, B, H = saved.c.shape
    mask, clip, wide = variant.h_mask, variant.cell_clip, accumulation_dtype(gates.dtype)
    W_hh, W_hr, p, gain = widened(wide, saved.weight_hh, saved.weight_hr, saved.peephole, variant.gain_hh)
    c = saved.c.to(wide)
    dh = c.new_zeros(B, W_hh.shape[1]) if douts.dh_n is None else douts.dh_n.to(wide)
    dc = c.new_zeros(B, H) if douts.dc_n is None else douts.dc_n.to(wide)
    c_prev = previous(c, saved.c0.to(wide), lengths, reverse)
    c = cell_before_zoneout(c, c_prev, gates, variant.zoneout_c, clip)

    dxw = gates.new_empty(T, B, 4 * H)
    dhw = dxw if gain is None else gates.new_empty(T, B, 4 * H)
    for t in reversed(list(time_steps(T, reverse))):
        dh_t = dh if douts.dy is None else dh + douts.dy[t]  # [B, P]
        dh_t, dh_kept = zone_back(dh_t, variant.zoneout_h, t)
        dc_t, dc_kept = zone_back(dc, variant.zoneout_c, t)
        dm = dh_t if W_hr is None else dh_t @ W_hr  # [B, H]
        da, dc_t = cell_backward(dm, dc_t, gates[t].to(wide), c[t], c_prev[t], p, clip)
        dxw[t] = da = if_valid(da.to(gates.dtype), lengths, t)
        if gain is not None and hw is not None:
            dhw[t] = da = norm_backward(da.to(wide), hw[t], gain).to(gates.dtype)
        dh_t = da.to(wide) @ W_hh
        dh_t = (dh_t if mask is None else dh_t * mask) + dh_kept
        dc_t = dc_t + dc_kept
        if lengths is None:
            dh, dc = dh_t, dc_t
        else:
            valid = (t < lengths)[:, None]
            dh, dc = torch.where(valid, dh_t, dh), torch.where(valid, dc_t, dc)
    return Gradients(
        dxw,
        dh.to(gates.dtype, copy=True),
        dc.to(gates.dtype, copy=True),
        *vector_gradients(dxw, c, c_prev, p),
        gates.new_empty(0) if gain is None else dhw,
    )


def products(factors: Factors) -> Products:
    """Form the products after the recurrence, each as one matrix product over all steps and rows."""
    dxw, dhw, x, weight_ih, y, h0, lengths, reverse = factors
    dx = dweight_ih = dweight_hh = dxw.new_empty(0)
    if weight_ih is not None:
        dx = dxw @ weight_ih
    if x is not None:
        if lengths is not None:  # padding may be NaN, and 0 * NaN is NaN
            x = torch.where(is_valid(lengths, x.shape[0]), x, torch.zeros_like(x))
        dweight_ih = outer_sum(dxw, x)
    if y is not None:
        assert h0 is not None
        dhw = dxw if dhw is None else dhw
        if lengths is not None and reverse:
            dweight_hh = outer_sum(dhw, previous(y, h0, lengths, reverse))
        else:
            # The first step is added separately, which avoids a shifted copy of y.
            first, later, earlier = (dhw[-1:], dhw[:-1], y[1:]) if reverse else (dhw[:1], dhw[1:], y[:-1])
            dweight_hh = add_product(
                outer_sum(later, earlier), rows(first).T, h0[: first.shape[0] * h0.shape[0]]
            )
    return Products(dx, dweight_ih, dweight_hh)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Total [M, N] plus left [M, K] times right [K, N]; in place, but not under vmap, which has no rule."""
    if torch._C._are_functorch_transforms_active():
        return torch.addmm(total, left, right)
    return total.addmm_(left, right)


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Sum over t and batch of leftᵀ right: [T, B, M] and [T, B, N] give [M, N]."""
    return rows(left).T @ rows(right)


def rows(tensor: Tensor) -> Tensor:
    """Stack the steps of all rows of the batch, [T * B, N]."""
    T, B, N = tensor.shape
    return tensor.reshape(T * B, N)  # flatten has no batching rule for is_grads_batched


def vector_gradients(
    dxw: Tensor, c: Tensor, c_prev: Tensor, peephole: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sums over t and batch: of da, [4H], and of da_i c_{t-1}, da_f c_{t-1}, da_o c_t, [3, H]."""
    if peephole is None:
        return dxw.sum((0, 1)), dxw.new_zeros(3, c.shape[-1])
    da_i, da_f, _, da_o = dxw.chunk(4, dim=-1)
    sums = [(da * state).sum((0, 1)) for da, state in ((da_i, c_prev), (da_f, c_prev), (da_o, c))]
    return dxw.sum((0, 1)), torch.stack(sums).to(dxw.dtype)


def cell_forward(
    a: Tensor, c_prev: Tensor, peephole: Tensor | None, clip: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One step from the pre-activations ``a`` [B, 4H]: o * tanh(c) [B, H], c [B, H], gates [B, 4H]."""
    p_i, p_f, p_o = split(peephole)
    a_i, a_f, a_g, a_o = a.chunk(4, dim=-1)
    i = torch.sigmoid(a_i + peep(p_i, c_prev))
    f = torch.sigmoid(a_f + peep(p_f, c_prev))
    g = torch.tanh(a_g)
    c = f * c_prev + i * g
    if clip is not None:
        c = c.clamp(-clip, clip)
    o = torch.sigmoid(a_o + peep(p_o, c))
    return o * torch.tanh(c), c, torch.cat([i, f, g, o], dim=-1)


def cell_backward(
    dm: Tensor,
    dc: Tensor,
    gates: Tensor,
    c: Tensor,
    c_prev: Tensor,
    peephole: Tensor | None,
    clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One step back from the gradients of o * tanh(c) and of c: da [B, 4H], dc_prev [B, H]."""
    p_i, p_f, p_o = split(peephole)
    i, f, g, o = gates.chunk(4, dim=-1)
    s = torch.tanh(c)
    da_o = dm * s * o * (1 - o)
    dc = dc + dm * o * (1 - s * s) + peep(p_o, da_o)
    if clip is not None:
        dc = dc * ((f * c_prev + i * g).abs() <= clip)
    da_i = dc * g * i * (1 - i)
    da_f = dc * c_prev * f * (1 - f)
    da_g = dc * i * (1 - g * g)
    dc_prev = dc * f + peep(p_i, da_i) + peep(p_f, da_f)
    return torch.cat([da_i, da_f, da_g, da_o], dim=-1), dc_prev


def zone_out(new: Tensor, old: Tensor, zoneout: Tensor | None, t: int) -> Tensor:
    """The mix z * old + (1 - z) * new at step t."""
    if zoneout is None:
        return new
    z = zoneout[t].to(new.dtype)
    return z * old + (1 - z) * new


def zone_back(d: Tensor, zoneout: Tensor | None, t: int) -> tuple[Tensor, Tensor | float]:
    """The gradients of `zone_out` with respect to the new and the old state."""
    if zoneout is None:
        return d, 0.0
    z = zoneout[t].to(d.dtype)
    return (1 - z) * d, z * d


def cell_before_zoneout(
    c: Tensor, c_prev: Tensor, gates: Tensor, zoneout_c: Tensor | None, clip: float | None
) -> Tensor:
    """The c before zoneout of every step, [T, B, H]: as saved, or recomputed from the gates with zoneout."""
    if zoneout_c is None:
        return c
    i, f, g, _ = gates.to(c.dtype).chunk(4, dim=-1)
    c = f * c_prev + i * g
    return c if clip is None else c.clamp(-clip, clip)


def layer_norm(v: Tensor, gain: Tensor) -> Tensor:
    """Gain * (v - mean) / sqrt(variance + 1e-5) over the last dimension."""
    recording = torch.is_grad_enabled() and (v.requires_grad or gain.requires_grad)
    if recording or torch._C._are_functorch_transforms_active():
        # PyTorch's layer norm has wrong third and forward-over-forward derivatives.
        return composed_layer_norm(v, gain)
    return F.layer_norm(v, gain.shape, gain, eps=EPS)


def composed_layer_norm(v: Tensor, gain: Tensor) -> Tensor:
    """The same, composed of operations that are differentiable to any order."""
    wide = accumulation_dtype(v.dtype)
    if v.dtype == wide:
        return gain * normalized(v)[0]
    return (gain.to(wide) * normalized(v.to(wide))[0]).to(v.dtype)


def norm_backward(da: Tensor, hw: Tensor, gain: Tensor) -> Tensor:
    """Layer norm's backward: from d loss / d a to d loss / d (W_hh h_{t-1}), all [B, 4H]."""
    n, rstd = normalized(hw)
    dn = da * gain
    return rstd * (dn - dn.mean(-1, keepdim=True) - n * (dn * n).mean(-1, keepdim=True))


def normalized(hw: Tensor) -> tuple[Tensor, Tensor]:
    """(W_hh h_{t-1} - mean) / deviation, and 1 / deviation."""
    centred = hw - hw.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return centred * rstd, rstd


def if_valid(value: Tensor, lengths: Tensor | None, t: int) -> Tensor:
    """The values [B, ...] of step t, zero past the lengths."""
    return value if lengths is None else torch.where((t < lengths)[:, None], value, torch.zeros_like(value))


def split(peephole: Tensor | None) -> tuple[Tensor | None, ...]:
    """p_i, p_f, p_o."""
    return (None, None, None) if peephole is None else peephole.unbind()


def peep(p: Tensor | None, state: Tensor) -> Tensor | float:
    """The product p * state, or 0 without peepholes, where 0 * inf would be NaN."""
    return 0.0 if p is None else p * state


def time_steps(T: int, reverse: bool) -> Iterable[int]:
    """Step indices in the order of the recurrence."""
    return range(T - 1, -1, -1) if reverse else range(T)


def previous(states: Tensor, first: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """The state before each step, [T, B, H], from the states after each step and the initial one [B, H]."""
    T = states.shape[0]  # not len, which would fix a symbolic size
    if not reverse:
        return torch.cat([first[None], states[:-1]])[:T]
    shifted = torch.cat([states[1:], first[None]])[:T]
    if lengths is None:
        return shifted
    starts = (torch.arange(T, device=lengths.device)[:, None] == lengths - 1)[:, :, None]
    return torch.where(starts, first, shifted)


def is_valid(lengths: Tensor, T: int) -> Tensor:
    """True for steps within their sequence, [T, B, 1]."""
    return (torch.arange(T, device=lengths.device)[:, None] < lengths)[:, :, None]


def widened(wide: torch.dtype, weight_hh: Tensor, *optional: Tensor | None) -> tuple[Any, ...]:
    """W_hh and optional weights in the accumulation dtype."""
    return weight_hh.to(wide), *(None if weight is None else weight.to(wide) for weight in optional)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, else the dtype itself."""
    return torch.promote_types(dtype, torch.float32)
