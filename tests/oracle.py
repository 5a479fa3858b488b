"""A second implementation of the maths in numpy's extended precision, for comparison with float64 results."""

import numpy as np
from cases import GAINS, Case
from numpy.typing import NDArray

Array = NDArray[np.longdouble]
EXTENDED = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps / 100  # false on some machines


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a))."""
    return 1 / (1 + np.exp(-a))


def normalized(v: Array) -> tuple[Array, Array]:
    """(v - mean) / deviation, and the deviation."""
    deviation = np.sqrt(v.var() + np.longdouble(1e-5))
    return (v - v.mean()) / deviation, deviation


def before_norm(d: Array, n: Array, deviation: Array) -> Array:
    """Return the gradient of v from that of n = (v - mean) / deviation."""
    return (d - d.mean() - n * (d * n).mean()) / deviation


def oracle(case: Case, t: dict[str, Array], w: dict[str, Array] | None) -> dict[str, Array]:
    """Return y, h_n, c_n of one layer from its inputs ``t``, and with ``w`` the gradients of sum(w * output).

    Each row of the batch runs alone over a list of its steps; lengths and direction only decide this list.
    """
    T, B, H = case.T, case.B, case.H
    P = case.P or H
    zero = np.longdouble(0)
    p_i, p_f, p_o = t.get("peephole", np.zeros((3, H), np.longdouble))
    W_ih, W_hh, W_hr = t["weight_ih"], t["weight_hh"], t.get("weight_hr")
    bias = t.get("bias_ih", zero) + t.get("bias_hh", zero)
    names = ("x", "weight_ih", "weight_hh", "peephole", "weight_hr", "h0", "c0", "gain_ih", "gain_hh")
    norm, clip = "gain_hh" in t, np.inf if case.cell_clip is None else np.longdouble(case.cell_clip)
    mask, z_h, z_c = (t.get(n) for n in ("h_mask", "zoneout_h", "zoneout_c"))
    mask = np.ones((B, P), np.longdouble) if mask is None else mask
    z_h = np.zeros((T, B, P), np.longdouble) if z_h is None else z_h
    z_c = np.zeros((T, B, H), np.longdouble) if z_c is None else z_c
    d = {n: np.zeros_like(t[n]) for n in names if n in t}
    d_bias = np.zeros(4 * H, np.longdouble)
    y = np.zeros((T, B, P), np.longdouble)
    h_n, c_n = np.zeros((B, P), np.longdouble), np.zeros((B, H), np.longdouble)

    for b in range(B):
        steps = list(range(T if case.lengths is None else case.lengths[b]))
        steps = steps[::-1] if case.reverse else steps
        h = t["h0"][b] if "h0" in t else h_n[b].copy()
        c = t["c0"][b] if "c0" in t else c_n[b].copy()
        past = []
        for s in steps:
            products = W_ih @ t["x"][s, b], W_hh @ (mask[b] * h)
            norms = [normalized(v) for v in products] if norm else []
            if norm:
                products = t["gain_ih"] * norms[0][0], t["gain_hh"] * norms[1][0]
            a_i, a_f, a_g, a_o = (products[0] + products[1] + bias).reshape(4, H)
            i, f, g = sigmoid(a_i + p_i * c), sigmoid(a_f + p_f * c), np.tanh(a_g)
            before = h, c
            unclipped = f * c + i * g
            cell = np.clip(unclipped, -clip, clip)
            o = sigmoid(a_o + p_o * cell)
            m = o * np.tanh(cell)
            h = z_h[s, b] * h + (1 - z_h[s, b]) * (m if W_hr is None else W_hr @ m)
            c = z_c[s, b] * c + (1 - z_c[s, b]) * cell
            y[s, b] = h
            past.append((s, *before, i, f, g, o, cell, m, np.abs(unclipped) <= clip, norms))
        h_n[b], c_n[b] = h, c
        if w is None:
            continue

        dh, dc = w["h_n"][b].copy(), w["c_n"][b].copy()
        for s, h_prev, c_prev, i, f, g, o, c, m, inside, norms in reversed(past):
            dh = dh + w["y"][s, b]
            dh_kept, dc_kept = z_h[s, b] * dh, z_c[s, b] * dc
            dh, dc = dh - dh_kept, dc - dc_kept
            dm = dh if W_hr is None else dh @ W_hr
            if W_hr is not None:
                d["weight_hr"] += np.outer(dh, m)
            da_o = dm * np.tanh(c) * o * (1 - o)
            dc = (dc + dm * o * (1 - np.tanh(c) ** 2) + da_o * p_o) * inside
            da_i, da_f, da_g = dc * g * i * (1 - i), dc * c_prev * f * (1 - f), dc * i * (1 - g**2)
            da = np.concatenate([da_i, da_f, da_g, da_o])
            dxw = dhw = da
            if norm:
                dxw, dhw = (before_norm(da * t[g], *of) for g, of in zip(GAINS, norms, strict=True))
                for gain, (n, _) in zip(GAINS, norms, strict=True):
                    d[gain] += da * n
            d["x"][s, b] = dxw @ W_ih
            d["weight_ih"] += np.outer(dxw, t["x"][s, b])
            d["weight_hh"] += np.outer(dhw, mask[b] * h_prev)
            d_bias += da
            if "peephole" in d:
                d["peephole"] += np.stack([da_i * c_prev, da_f * c_prev, da_o * c])
            dh = mask[b] * (dhw @ W_hh) + dh_kept
            dc = dc * f + da_i * p_i + da_f * p_f + dc_kept
        if "h0" in d:
            d["h0"][b], d["c0"][b] = dh, dc

    d |= {n: d_bias for n in ("bias_ih", "bias_hh") if n in t}
    outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    return outputs if w is None else outputs | {f"d_{n}": value for n, value in d.items()}
