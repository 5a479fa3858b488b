"""The oracle for whole modules: layers, directions, coupled gates and their gradients, in numpy."""

from collections.abc import Mapping

import numpy as np
from cases import Case
from oracle import Array, oracle

THREE_GATES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def four_gates(own: Mapping[str, Array], coupled: bool) -> dict[str, Array]:
    """Coupled gates f, g, o as i, f, g, o, where i = 1 - f is the gate of all weights of f negated."""
    t = dict(own)
    for name in (*THREE_GATES, "peephole") if coupled else ():
        if name in t:
            H = len(t[name]) // (2 if name == "peephole" else 3)
            t[name] = np.concatenate([-t[name][:H], t[name]])
    return t


def coupled_back(d: dict[str, Array], coupled: bool) -> dict[str, Array]:
    """The gradients of the coupled gates' parameters from those of all four."""
    for name in (*THREE_GATES, "peephole") if coupled else ():
        if f"d_{name}" in d:
            g = d[f"d_{name}"]
            H = len(g) // (3 if name == "peephole" else 4)
            d[f"d_{name}"] = np.concatenate([g[H : 2 * H] - g[:H], g[2 * H :]])
    return d


def layer(
    own: Mapping[str, Array],
    x: Array,  # [T, B, I]
    h0: Array,  # [B, P]
    c0: Array,  # [B, H]
    given: Mapping[str, Array],  # h_mask, zoneout_h, zoneout_c
    w: dict[str, Array] | None,  # of y, h_n, c_n
    lengths: tuple[int, ...] | None,
    reverse: bool,
    cell_clip: float | None,
    coupled: bool = False,
) -> dict[str, Array]:
    """One layer in one direction: its outputs, and the gradients of sum(w * output)."""
    (T, B, I), P, H = x.shape, h0.shape[1], c0.shape[1]
    case = Case("fuzz", T, B, I, H, P if "weight_hr" in own else 0, lengths=lengths, reverse=reverse)
    case = Case(**{**case.__dict__, "cell_clip": cell_clip})
    t = {"x": x, "h0": h0, "c0": c0, **four_gates(own, coupled), **given}
    return coupled_back(oracle(case, t, w), coupled)


def stack(
    layers: list[list[Mapping[str, Array]]],  # the parameters of each layer's directions
    x: Array,  # [T, B, I]
    h0: Array,  # [layers * directions, B, P]
    c0: Array,  # [layers * directions, B, H]
    given: Mapping[str, Array],  # zoneout_h, zoneout_c of every layer
    w: Mapping[str, Array],  # of y [T, B, directions * P], h_n and c_n
    lengths: tuple[int, ...] | None,
    cell_clip: float | None,
    coupled: bool,
) -> dict[str, Array]:
    """All layers: y, h_n, c_n and the gradients, those of the parameters named as in the module."""
    directions, P = len(layers[0]), h0.shape[2]

    def run(n: int, k: int, w: dict[str, Array] | None) -> dict[str, Array]:
        row = n * directions + k
        states = h0[row], c0[row]
        return layer(layers[n][k], inputs[n], *states, given, w, lengths, k == 1, cell_clip, coupled)

    inputs = [x]
    for n in range(len(layers) - 1):
        inputs.append(np.concatenate([run(n, k, None)["y"] for k in range(directions)], axis=-1))

    out = {"h_n": np.zeros_like(h0), "c_n": np.zeros_like(c0)}
    out |= {"d_h0": np.zeros_like(h0), "d_c0": np.zeros_like(c0)}
    dy = w["y"]
    for n in reversed(range(len(layers))):
        found = []
        for k in range(directions):
            row = n * directions + k
            own = {"y": dy[..., k * P : (k + 1) * P], "h_n": w["h_n"][row], "c_n": w["c_n"][row]}
            found.append(run(n, k, own))
            for name in ("h_n", "c_n", "d_h0", "d_c0"):
                out[name][row] = found[k][name]
            for name in layers[n][k]:
                out[f"d_{name}_l{n}{'_reverse' * k}"] = found[k][f"d_{name}"]
        if n == len(layers) - 1:
            out["y"] = np.concatenate([f["y"] for f in found], axis=-1)
        dy = np.sum([f["d_x"] for f in found], axis=0)
    return out | {"d_x": dy}
