"""A random search over all options, against an oracle that shares no code with the package.

`make test` runs a short one, `make fuzz` one of any length. A draw follows from its seed and number alone.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from fuzz_oracle import layer, stack
from harness import extended, largest
from oracle import Array
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import lstm_fused
from lstm_fused.backends import ENGINES

# Of an error, in the largest magnitude of its tensor: far more than rounding, far less than a mistake.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 0.3}
# Of the largest of all gradients: what cancels in one of them is rounded as they are.
BESIDE = 1e-2


@dataclass(frozen=True)
class Draw:
    """One random call."""

    kind: str  # LSTM, LSTMCell or lstm
    engine: str | None
    dtype: torch.dtype
    T: int
    B: int
    I: int
    H: int
    P: int = 0
    num_layers: int = 1
    bidirectional: bool = False
    reverse: bool = False
    bias: bool = True
    peephole: bool = True
    coupled: bool = False
    layer_norm: bool = False
    forget_bias: float | None = None
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    recurrent_dropout: float = 0.0
    dropout: float = 0.0
    cell_clip: float | None = None
    batch_first: bool = False
    given: str = "padded"  # or single, packed, packed_unsorted
    lengths: tuple[int, ...] | None = None
    lengths_dtype: torch.dtype = torch.int64
    states: bool = True
    layout: str = "contiguous"  # or strided, expanded, transposed
    transform: str | None = None  # or vmap, jvp

    def __str__(self) -> str:
        told = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in told).replace("torch.", "")


def draw(seed: int, n: int) -> tuple[Draw, torch.Generator]:
    """The n-th draw of a seed, and what to draw its numbers with."""
    r = random.Random(f"{seed}/{n}")

    def often(p: float) -> bool:
        return r.random() < p

    kind = r.choices(("LSTM", "LSTMCell", "lstm"), (8, 1, 2))[0]
    here = [e for e in ENGINES if not e.why_not(torch.device("cpu"), torch.float32)]
    engine = r.choice(here)
    dtype = r.choices((torch.float64, torch.float32, torch.bfloat16), (6, 2, 1))[0]
    # Vectors and tiles end at many sizes; most draws are small, so that there are many.
    H = r.choice((1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33)) if often(0.9) else r.randint(1, 70)
    I = r.choice((1, 2, 3, 5, 8, 17)) if often(0.95) else r.randint(1, 60)
    T = r.choice((0, 1, 2, 3, 4, 5, 6, 8)) if often(0.95) else r.randint(9, 30)
    B = r.choice((0, 1, 2, 3, 4, 5, 6)) if often(0.9) else r.randint(7, 40)
    if kind == "LSTMCell":
        T = 1
    P = r.randint(1, H - 1) if H > 1 and kind != "LSTMCell" and often(0.3) else 0
    bias, layer_norm = often(0.8), often(0.2)
    coupled = kind != "lstm" and not layer_norm and often(0.2)
    num_layers = r.choice((1, 1, 2, 3)) if kind == "LSTM" else 1
    given = "padded"
    if kind == "LSTM":
        given = r.choices(("padded", "single", "packed", "packed_unsorted"), (6, 1, 2, 2))[0]
    elif kind == "LSTMCell" and often(0.2):
        given = "single"
    lengths = None
    if given == "single":
        B = 1
    elif given.startswith("packed"):
        T, B = max(T, 1), max(B, 1)
        found = [r.randint(1, T) for _ in range(B - 1)] + [T]
        r.shuffle(found)
        lengths = tuple(found if given == "packed_unsorted" else sorted(found, reverse=True))
    elif kind != "LSTMCell" and often(0.5):
        lengths = tuple(r.choice((0, T, r.randint(0, T))) for _ in range(B))
    transform = None
    if given == "padded" and kind == "LSTM" and B > 0 and T > 0 and dtype == torch.float64:
        transform = r.choices((None, "vmap", "jvp"), (4, 1, 2))[0]
    more: dict[str, Any] = {}
    if kind != "lstm":
        more["forget_bias"] = r.choice((None, 1.0, -0.5)) if bias else None
    return Draw(
        kind,
        r.choice((engine.name, engine.name, None)),
        dtype,
        T,
        B,
        I,
        H,
        P,
        num_layers,
        bidirectional=kind == "LSTM" and often(0.4),
        reverse=kind == "lstm" and often(0.5),
        bias=bias,
        peephole=often(0.7),
        coupled=coupled,
        layer_norm=layer_norm,
        zoneout_h=r.choice((0.0, 0.0, 0.0, 0.3, 1.0)),
        zoneout_c=r.choice((0.0, 0.0, 0.0, 0.6, 1.0)),
        recurrent_dropout=r.choice((0.0, 0.0, 0.5)) if kind != "LSTMCell" else 0.0,
        dropout=0.4 if num_layers > 1 and often(0.2) else 0.0,
        cell_clip=r.choice((None, None, None, 0.3, 2.0)),
        batch_first=kind == "LSTM" and often(0.4),
        given=given,
        lengths=lengths,
        lengths_dtype=r.choice((torch.int64, torch.int32, torch.uint8)),
        states=often(0.6),
        layout=r.choice(("contiguous", "contiguous", "strided", "expanded", "transposed")),
        transform=transform,
        **more,
    ), torch.Generator().manual_seed(r.getrandbits(60))


def numbers(d: Draw, generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """A random tensor in the draw's dtype, exact in bfloat16, laid out in memory as the draw says."""
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
    """What zoneout multiplies with, 0 to 1."""
    return torch.rand(shape, generator=generator).bfloat16().to(d.dtype)


class Problem:
    """A draw with its numbers: the call to make, its leaves, and what the oracle says of it."""

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
            found["peephole"] = numbers(d, generator, 3 * d.H, scale=0.5)
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
        """What the package makes of x [T, B, I], h0 and c0 [layers * directions, B, ...], in these shapes."""
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
        """Padded with zeros, in the user's order, without PyTorch's own routine."""
        steps = [out.data.new_zeros(self.d.B, out.data.shape[1]) for _ in range(self.d.T)]
        order = list(range(self.d.B)) if out.sorted_indices is None else out.sorted_indices.tolist()
        first = 0
        for t, size in enumerate(out.batch_sizes.tolist()):
            steps[t] = steps[t].index_put((torch.tensor(order[:size]),), out.data[first : first + size])
            first += size
        return torch.stack(steps)

    def exact(self, x: Tensor) -> dict[str, Array]:
        """The same from the oracle, with the gradients of sum(w * output)."""
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


def check(d: Draw, generator: torch.Generator) -> float:
    """Hold one draw against the oracle; returns its largest error, in what is tolerated.

    Raises:
        AssertionError: an output or gradient is wrong.
    """
    problem = Problem(d, generator)
    if d.transform == "vmap":
        return check_vmap(problem)
    exact = problem.exact(problem.x)
    states = {"h0": problem.h0, "c0": problem.c0} if d.states else {}
    leaves = {n: t.detach().requires_grad_() for n, t in {"x": problem.x, **states}.items()}
    at = leaves["x"], leaves.get("h0", problem.h0), leaves.get("c0", problem.c0)
    if d.transform == "jvp":
        return check_jvp(problem, exact)
    out = problem.call(*at)
    with torch.no_grad():
        alone = problem.call(problem.x, problem.h0, problem.c0)
    leaves |= problem.parameters
    loss = sum((out[n] * problem.w[n]).sum() for n in out)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    found = {n: t.detach() for n, t in out.items()}
    found |= {f"d_{n}": g for n, g in zip(leaves, grads, strict=True)}
    gradients = max(largest(v) for n, v in exact.items() if n.startswith("d_"))
    # Rounding decides whether what lies at the bound was clipped, and a layer norm divides by what may be 0.
    rounded = d.dtype == torch.bfloat16 and (d.cell_clip is not None or d.layer_norm)
    most = 0.0
    for name, value in found.items():
        assert value.shape == exact[name].shape and value.dtype == d.dtype, f"{name}: {tuple(value.shape)}"
        if rounded and name.startswith("d_"):
            continue
        beside = BESIDE * gradients if name.startswith("d_") else 0.0
        most = max(most, off(name, d, value, exact[name], beside))
        if name in alone:
            most = max(most, off(f"{name} without gradients", d, alone[name], exact[name], beside))
    return most


def off(name: str, d: Draw, value: Tensor, exact: Array, beside: float = 0.0) -> float:
    """The error of one tensor, in what is tolerated; wrong above 1."""
    allowed = TOLERANCE[d.dtype] * max(largest(exact), beside, 1e-3)
    error = largest(extended(value) - exact) / allowed
    assert error <= 1, f"{name} is off by {error * TOLERANCE[d.dtype]:.2g} of its size"
    return error


def check_vmap(problem: Problem) -> float:
    """Three inputs at once, each as it would be alone."""
    x = torch.stack([problem.x, 2 * problem.x, problem.x.flip(-1)])
    out = torch.vmap(lambda x: problem.call(x, problem.h0, problem.c0))(x)
    exact = [problem.exact(each) for each in x]
    return max(
        off(f"{n} under vmap", problem.d, out[n][k], exact[k][n])
        for n in ("y", "h_n", "c_n")
        for k in range(3)
    )


def check_jvp(problem: Problem, exact: dict[str, Array]) -> float:
    """A derivative in one direction, against the oracle's gradient along it."""

    def loss(x: Tensor, h0: Tensor = problem.h0, c0: Tensor = problem.c0) -> Tensor:
        out = problem.call(x, h0, c0)
        return torch.stack([(out[n] * problem.w[n]).sum() for n in out]).sum()

    tangents = problem.tangents
    at = tuple(getattr(problem, n).clone() for n in tangents)  # PyTorch takes none expanded
    _, slope = torch.func.jvp(loss, at, tuple(tangents.values()))
    along = [exact[f"d_{n}"] * extended(t) for n, t in tangents.items()]
    expected, size = (np.asarray(sum(v.sum() for v in values)) for values in (along, map(np.abs, along)))
    return off("the derivative in one direction", problem.d, slope, expected, float(size))


def search(seed: int, first: int, last: int | None, done: Callable[[int, Draw, float], bool]) -> str | None:
    """Check draws of a seed in order, until ``done`` says so; a line about the first that fails, or None."""
    n = first
    while last is None or n < last:
        d, generator = draw(seed, n)
        try:
            error = check(d, generator)
        except Exception as fault:
            what = str(fault).partition("\n")[0]
            what = what if isinstance(fault, AssertionError) else f"{type(fault).__name__}: {what}"
            return f'make fuzz ARGS="--seed {seed} --only {n}": {what}: {d}'
        n += 1
        if done(n, d, error):
            break
    return None


def main() -> int:
    """Search for as long as is asked for."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="Random options against the oracle.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long, 1 by default")
    parser.add_argument("--seed", type=int, default=None, help="where to start; another every day by default")
    parser.add_argument("--only", type=int, default=None, help="one draw of the seed alone")
    args = parser.parse_args()
    seed = int(time.time() // 86400) if args.seed is None else args.seed
    if args.only is not None:
        d, generator = draw(seed, args.only)
        print(d)
        print(f"right: its error is {check(d, generator):.0%} of what is allowed")
        return 0
    start, shown, worst = time.monotonic(), 0.0, 0.0

    def done(n: int, d: Draw, error: float) -> bool:
        nonlocal shown, worst
        seconds, worst = time.monotonic() - start, max(worst, error)
        if seconds >= shown:
            shown += 10
            print(f"seed {seed}: {n} draws in {seconds:.0f} s, errors up to {worst:.0%} of what is allowed")
            sys.stdout.flush()
        return seconds >= 60 * args.minutes

    try:
        failure = search(seed, 0, None, done)
    except KeyboardInterrupt:
        failure = None
        print()
    if failure:
        print(failure)
        return 1
    print(f"seed {seed}: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
