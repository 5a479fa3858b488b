"""The tensors of a draw: makes the call on the package and on the oracle."""

from typing import Any

import numpy as np
import torch
from fuzz_draws import Draw
from fuzz_oracle import layer, stack
from harness import extended
from oracle import Array
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import lstm_fused


def numbers(d: Draw, generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Return a random tensor in the draw's dtype and memory layout, exact in bfloat16."""
    values = (torch.randn(shape, generator=generator) * scale).bfloat16().to(d.dtype)
    if d.layout == "strided":
        spaced = values.new_full([2 * n for n in shape], torch.nan)[
            tuple(slice(None, None, 2) for _ in shape)
        ]
        return spaced.copy_(values)
    if d.layout == "expanded" and shape[0] > 0:
        return values[:1].expand(shape)
    return values.mT.contiguous().mT if d.layout == "transposed" and len(shape) > 1 else values


def shares(d: Draw, generator: torch.Generator, *shape: int) -> Tensor:
    """Return masks with values from 0 to 1."""
    return torch.rand(shape, generator=generator).bfloat16().to(d.dtype)


class Problem:
    """The tensors of a draw, with its call on the package and on the oracle."""

    def __init__(self, d: Draw, generator: torch.Generator) -> None:
        self.d, self.width = d, d.P or d.H
        rows = d.num_layers * (2 if d.bidirectional else 1)
        self.x = numbers(d, generator, d.T, d.B, d.I)
        self.h0 = numbers(d, generator, rows, d.B, self.width, scale=0.5)
        self.c0 = numbers(d, generator, rows, d.B, d.H)
        if not d.states:
            self.h0, self.c0 = torch.zeros_like(self.h0), torch.zeros_like(self.c0)
        directions = rows // d.num_layers
        shapes = {
            "y": (d.T, d.B, directions * self.width), "h_n": self.h0.shape, "c_n": self.c0.shape
        }  # fmt: skip
        self.w = {n: torch.randn(s, generator=generator).bfloat16().to(d.dtype) for n, s in shapes.items()}
        inputs = {"x": self.x} | ({"h0": self.h0, "c0": self.c0} if d.states else {})
        self.tangents = {n: torch.randn(t.shape, generator=generator).to(d.dtype) for n, t in inputs.items()}
        self.masks: dict[str, Tensor] = {}
        self.module: Any = None
        if d.kind == "lstm":
            self.parameters = self.loose_parameters(generator)
            if d.recurrent_dropout:
                self.masks["h_mask"] = 2 * shares(d, generator, d.B, self.width).round()
            if d.zoneout_h:
                self.masks["zoneout_h"] = shares(d, generator, d.T, d.B, self.width)
            if d.zoneout_c:
                self.masks["zoneout_c"] = shares(d, generator, d.T, d.B, d.H)
        else:
            self.module = self.make_module(generator)
            self.parameters = dict(self.module.named_parameters())

    def loose_parameters(self, generator: torch.Generator) -> dict[str, Tensor]:
        d, scale = self.d, self.d.H**-0.5
        found = {
            "weight_ih": numbers(d, generator, 4 * d.H, d.I, scale=d.I**-0.5),
            "weight_hh": numbers(d, generator, 4 * d.H, self.width, scale=scale),
        }
        if d.bias:  # one of the two may stand alone
            for name in (("bias_ih",), ("bias_hh",), ("bias_ih", "bias_hh"))[d.H % 3]:
                found[name] = numbers(d, generator, 4 * d.H, scale=scale)
        if d.peephole:
            found["peephole"] = numbers(d, generator, 3, d.H, scale=0.5)
        if d.P:
            found["weight_hr"] = numbers(d, generator, d.P, d.H, scale=scale)
        if d.layer_norm:
            found |= {n: numbers(d, generator, 4 * d.H) for n in ("gain_ih", "gain_hh")}
        return {n: t.detach().requires_grad_() for n, t in found.items()}

    def make_module(self, generator: torch.Generator) -> torch.nn.Module:
        d = self.d
        options: dict[str, Any] = {
            n: getattr(d, n)
            for n in ("peephole", "forget_bias", "coupled", "layer_norm", "zoneout_h", "zoneout_c")
        }
        options |= {"cell_clip": d.cell_clip, "engine": d.engine, "dtype": d.dtype, "bias": d.bias}
        if d.kind == "LSTMCell":
            module: Any = lstm_fused.LSTMCell(d.I, d.H, **options)
        else:
            options |= {"batch_first": d.batch_first, "bidirectional": d.bidirectional, "proj_size": d.P}
            options |= {"dropout": d.dropout, "recurrent_dropout": d.recurrent_dropout}
            module = lstm_fused.LSTM(d.I, d.H, d.num_layers, **options)
        if d.forget_bias is not None:
            first = 0 if d.coupled else d.H
            for name, p in module.named_parameters():
                if name.startswith("bias"):
                    value = d.forget_bias if name.startswith("bias_ih") else 0.0
                    assert (p[first : first + d.H] == value).all(), f"{name} does not start at forget_bias"
        with torch.no_grad():
            for p in module.parameters():
                p.copy_((torch.randn(p.shape, generator=generator) * d.H**-0.5).bfloat16())
        random_in_training = d.zoneout_h or d.zoneout_c or d.recurrent_dropout or d.dropout
        return module.eval() if random_in_training or d.T % 2 else module.train()

    def call(self, x: Tensor, h0: Tensor, c0: Tensor) -> dict[str, Tensor]:
        """Call the package on x [T, B, I], h0 and c0 [layers * directions, B, ...]; return these layouts."""
        d = self.d
        lengths = None if d.lengths is None else torch.tensor(d.lengths, dtype=d.lengths_dtype)
        if d.kind == "lstm":
            y, (h_n, c_n) = lstm_fused.lstm(
                x, self.parameters["weight_ih"], self.parameters["weight_hh"],
                self.parameters.get("bias_ih"), self.parameters.get("bias_hh"),
                **{n: self.parameters.get(n) for n in ("peephole", "weight_hr", "gain_ih", "gain_hh")},
                hx=(h0[0], c0[0]) if d.states else None, lengths=lengths, reverse=d.reverse, **self.masks,
                cell_clip=d.cell_clip, engine=d.engine,
            )  # fmt: skip
            return {"y": y, "h_n": h_n[None], "c_n": c_n[None]}
        if d.kind == "LSTMCell":
            at = (0, 0) if d.given == "single" else (0,)
            h_n, c_n = self.module(x[at], (h0[at], c0[at]) if d.states else None)
            h_n, c_n = (s.view(1, d.B, d.H) for s in (h_n, c_n))
            return {"y": h_n, "h_n": h_n, "c_n": c_n}
        hx = (h0, c0) if d.states else None
        if d.given.startswith("packed"):
            packed = pack_padded_sequence(x, lengths.long(), enforce_sorted=d.given == "packed")
            out, (h_n, c_n) = self.module(packed, hx)
            for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
                ours, theirs = getattr(out, field), getattr(packed, field)
                assert (ours is theirs is None) or torch.equal(ours, theirs), f"{field} has changed"
            y = self.unpacked(out)
        elif d.given == "single":
            y, (h_n, c_n) = self.module(x[:, 0], None if hx is None else (h0[:, 0], c0[:, 0]))
            y, h_n, c_n = y[:, None], h_n[:, None], c_n[:, None]
        else:
            x = x.transpose(0, 1) if d.batch_first else x
            y, (h_n, c_n) = self.module(x, hx, lengths)
            y = y.transpose(0, 1) if d.batch_first else y
        return {"y": y, "h_n": h_n, "c_n": c_n}

    def unpacked(self, out: PackedSequence) -> Tensor:
        """Unpack and pad with zeros, in the user's order, without PyTorch's own function."""
        steps = [out.data.new_zeros(self.d.B, out.data.shape[1]) for _ in range(self.d.T)]
        order = list(range(self.d.B)) if out.sorted_indices is None else out.sorted_indices.tolist()
        first = 0
        for t, size in enumerate(out.batch_sizes.tolist()):
            steps[t] = steps[t].index_put((torch.tensor(order[:size]),), out.data[first : first + size])
            first += size
        return torch.stack(steps)

    def exact(self, x: Tensor) -> dict[str, Array]:
        """Return the oracle's outputs, and its gradients of sum(w * output)."""
        d = self.d
        own = {n: extended(p) for n, p in self.parameters.items()}
        at = [extended(t) for t in (x, self.h0, self.c0)]
        given = {n: extended(m) for n, m in self.masks.items()}
        w = {n: extended(t) for n, t in self.w.items()}
        if d.kind == "LSTMCell":
            own = {f"{n}_l0": p for n, p in own.items()}
            w["h_n"], w["y"] = w["h_n"] + w["y"], np.zeros_like(w["y"])
        if d.kind != "lstm":
            for name, width in (("zoneout_h", self.width), ("zoneout_c", d.H)):
                if rate := getattr(d, name):
                    value = torch.tensor(rate, dtype=d.dtype).item()
                    given[name] = np.full((d.T, d.B, width), value, np.longdouble)
            ends = ("", "_reverse")[: 2 if d.bidirectional else 1]
            layers = [
                [
                    {
                        n.removesuffix(end).removeprefix("weight_" if "peephole" in n else ""): p
                        for n, p in own.items()
                        for end in [f"_l{k}{direction}"]
                        if n.endswith(end)
                    }
                    for direction in ends
                ]
                for k in range(d.num_layers)
            ]
            found = stack(layers, *at, given, w, d.lengths, d.cell_clip, d.coupled)
            found = {n.replace("d_peephole", "d_weight_peephole"): v for n, v in found.items()}
            return {n.removesuffix("_l0"): v for n, v in found.items()} if d.kind == "LSTMCell" else found
        w = {"y": w["y"], "h_n": w["h_n"][0], "c_n": w["c_n"][0]}
        found = layer(own, at[0], at[1][0], at[2][0], given, w, d.lengths, d.reverse, d.cell_clip)
        return {n: v[None] if n in ("h_n", "c_n", "d_h0", "d_c0") else v for n, v in found.items()}
