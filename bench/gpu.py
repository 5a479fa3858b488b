"""For whoever has a GPU: python -m bench.gpu check | bench | tune. None of it has run on one yet.

check compares outputs and gradients of every case, dtype and kernel between CPU and GPU; bench times the
layer against cuDNN's nn.LSTM, the step-by-step cell and torch.compile; tune measures which kernel is the
fastest on this card and writes it to kernels/tuned.py. ``--device cpu`` under TRITON_INTERPRET=1 tries the
program itself, not the kernels' speed.
"""

import argparse
import json
import os
import pprint
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from lstm_fused.kernels import choose, tuned
from torch import Tensor, nn

import lstm_fused
from tests.cases import CASES, Case, make_tensors

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out" / "gpu.json"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = tuple(
    Case(f"H{H}_B{B}", T=256, B=B, I=H, H=H) for H in (64, 128, 256, 512, 768, 1024) for B in (16, 64)
)


@contextmanager
def kernel_named(name: str) -> Iterator[None]:
    """Let the launcher take no other kernel."""
    os.environ["LSTM_FUSED_KERNEL"] = name
    try:
        yield
    finally:
        del os.environ["LSTM_FUSED_KERNEL"]


def results(case: Case, dtype: torch.dtype, device: str, engine: str) -> dict[str, Tensor]:
    """Outputs and all gradients, on the CPU in float64."""
    leaves = {n: t.to(device).requires_grad_() for n, t in make_tensors(case, dtype).items() if t is not None}
    t = leaves.get
    h0, c0 = t("h0"), t("c0")
    y, (h_n, c_n) = lstm_fused.lstm(
        leaves["x"], leaves["weight_ih"], leaves["weight_hh"], t("bias_ih"), t("bias_hh"),
        peephole=t("peephole"), weight_hr=t("weight_hr"),
        hx=None if h0 is None or c0 is None else (h0, c0),
        lengths=None if case.lengths is None else torch.tensor(case.lengths),
        reverse=case.reverse, engine=engine,
    )  # fmt: skip
    loss = (y * torch.cos(torch.arange(y.numel(), device=device).view(y.shape)).to(dtype)).sum() + h_n.sum()
    grads = torch.autograd.grad(loss + c_n.sum(), list(leaves.values()))
    found = {"y": y, "h_n": h_n, "c_n": c_n} | {f"d_{n}": g for n, g in zip(leaves, grads, strict=True)}
    return {name: value.detach().double().cpu() for name, value in found.items()}


def check(device: str, cases: tuple[Case, ...] = CASES) -> list[str]:
    """Every case, dtype and kernel on the GPU; what is further from float64 than four times the reference."""
    wrong = []
    for case in cases:
        exact = results(case, torch.float64, "cpu", "reference")
        for dtype in DTYPES:
            rounded = results(case, dtype, "cpu", "reference")
            for kernel in choose.KERNELS:
                with kernel_named(kernel):
                    try:
                        found = results(case, dtype, device, "triton")
                    except RuntimeError as error:
                        if "cannot run" not in str(error):
                            wrong.append(f"{case.name}, {dtype}, {kernel}: {error}")
                        continue
                for name, value in exact.items():
                    if not value.numel():
                        continue
                    one_rounding = value.abs().max() * torch.finfo(dtype).eps
                    bound = 4 * torch.maximum((rounded[name] - value).abs().max(), one_rounding)
                    off = (found[name] - value).abs().max()
                    if not off <= bound:
                        wrong.append(
                            f"{case.name}, {dtype}, {kernel}: {name} is off by {off:.2e}, over {bound:.2e}"
                        )
        print(".", end="", flush=True)
    print()
    return wrong


def milliseconds(call: Callable[[], object], device: str) -> float:
    """Median time of a call."""
    synchronize: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        call()
    times = []
    for _ in range(10):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


class StepByStep(nn.Module):
    """The peephole LSTM as one writes it by hand."""

    def __init__(self, layer: lstm_fused.LSTM) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over x [T, B, I]."""
        w = dict(self.layer.named_parameters())
        p_i, p_f, p_o = w["weight_peephole_l0"].chunk(3)
        h = c = x.new_zeros(x.shape[1], self.layer.hidden_size)
        ys = []
        for x_t in x:
            a = x_t @ w["weight_ih_l0"].T + w["bias_ih_l0"] + w["bias_hh_l0"] + h @ w["weight_hh_l0"].T
            a_i, a_f, a_g, a_o = a.chunk(4, 1)
            i, f = torch.sigmoid(a_i + p_i * c), torch.sigmoid(a_f + p_f * c)
            c = f * c + i * torch.tanh(a_g)
            h = torch.sigmoid(a_o + p_o * c) * torch.tanh(c)
            ys.append(h)
        return torch.stack(ys), (h, c)


def contenders(case: Case, dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    """Who is timed."""
    ours = lstm_fused.LSTM(case.I, case.H, device=device, dtype=dtype, engine="triton")
    return {
        "lstm_fused": ours,
        "nn.LSTM": nn.LSTM(case.I, case.H, device=device, dtype=dtype),
        "step by step": StepByStep(ours),
    }


def time_layer(
    layer: Callable[[Tensor], tuple[Tensor, object]], weights: Sequence[Tensor], x: Tensor, device: str
) -> tuple[float, float]:
    """Milliseconds of inference, and of training."""

    def infer() -> None:
        with torch.no_grad():
            layer(x)

    def train() -> None:
        torch.autograd.grad(layer(x)[0].sum(), weights)

    return milliseconds(infer, device), milliseconds(train, device)


def bench(device: str, cases: tuple[Case, ...] = SIZES) -> list[dict[str, object]]:
    """Time every size; torch.compile of the step-by-step cell only once, for it takes minutes."""
    rows: list[dict[str, object]] = []
    for n, case in enumerate(cases):
        for dtype in (torch.bfloat16, torch.float32):
            layers = contenders(case, dtype, device)
            weights = list(layers["lstm_fused"].parameters())
            x = torch.randn(case.T, case.B, case.I, device=device, dtype=dtype)
            if n == 0 and dtype == torch.bfloat16 and device == "cuda":
                short, compiled = x[:32], torch.compile(layers["step by step"])
                rows.append(
                    row(
                        replace(case, T=32),
                        dtype,
                        "torch.compile",
                        *time_layer(compiled, weights, short, device),
                    )
                )
                rows.append(
                    row(
                        replace(case, T=32),
                        dtype,
                        "lstm_fused",
                        *time_layer(layers["lstm_fused"], weights, short, device),
                    )
                )
            for name, layer in layers.items():
                rows.append(row(case, dtype, name, *time_layer(layer, list(layer.parameters()), x, device)))
    return rows


def row(case: Case, dtype: torch.dtype, name: str, infer: float, train: float) -> dict[str, object]:
    """A line of the table, printed."""
    kind = str(dtype).removeprefix("torch.")
    print(
        f"T {case.T:<4} B {case.B:<4} H {case.H:<5} {kind:<9} {name:<14} {infer:9.3f} ms {train:9.3f} ms",
        flush=True,
    )
    return {
        "T": case.T,
        "B": case.B,
        "H": case.H,
        "dtype": kind,
        "name": name,
        "inference_ms": infer,
        "training_ms": train,
    }


def tune(device: str, cases: tuple[Case, ...] = SIZES) -> None:
    """Measure the kernels, and write kernels/tuned.py."""
    card = choose.card_at(torch.device(device, 0) if device == "cuda" else torch.device(device))
    fastest = dict(tuned.TUNED)
    for case in cases:
        if case.B != 16:
            continue
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.randn(case.T, case.B, case.I, device=device, dtype=dtype)
            layer = lstm_fused.LSTM(case.I, case.H, device=device, dtype=dtype, engine="triton")
            found: dict[str, tuple[float, float]] = {}
            for kernel in choose.KERNELS:
                with kernel_named(kernel):
                    try:
                        infer, train = time_layer(layer, list(layer.parameters()), x, device)
                    except RuntimeError:
                        continue
                found[kernel] = infer, train - infer
            for n, direction in enumerate(("forward", "backward")):
                best = min(found, key=lambda kernel: found[kernel][n])
                fastest[card.name, direction, case.H, dtype.itemsize] = best
    text = Path(tuned.__file__).read_text().split("TUNED:")[0].replace(" No card was measured yet.", "")
    kind = "dict[tuple[str, str, int, int], str]"
    Path(tuned.__file__).write_text(f"{text}TUNED: {kind} = {pprint.pformat(fastest, width=100)}\n")


def sanitize() -> list[str]:
    """The smallest cases under compute-sanitizer, where there is one."""
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not installed: left out")
        return []
    program = [sys.executable, "-m", "bench.gpu", "check", "--small"]
    done = subprocess.run(["compute-sanitizer", "--error-exitcode", "1", *program], cwd=ROOT)
    return ["compute-sanitizer reports errors"] if done.returncode else []


def main() -> None:
    """Do what is asked, and end with one line of verdict."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("task", choices=("check", "bench", "tune"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="the smallest cases alone")
    arguments = parser.parse_args()
    device = arguments.device
    if reason := lstm_fused.engines().get("triton", "no such engine"):
        sys.exit(f"gpu: the Triton engine cannot run here: {reason}")
    machine = torch.cuda.get_device_name() if device == "cuda" else "interpreter"
    print(f"{machine}, torch {torch.__version__}, lstm_fused {lstm_fused.__version__}")
    small = tuple(
        replace(case, T=min(case.T, 2), I=3, H=min(case.H, 5), P=min(case.P, 2)) for case in CASES[1:3]
    )
    if arguments.task == "tune":
        return tune(device, small if arguments.small else SIZES)
    if arguments.task == "bench":
        rows = bench(device, small if arguments.small else SIZES)
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "rows": rows}, indent=1))
        times: dict[object, dict[object, float]] = {}
        for r in rows:
            times.setdefault((r["T"], r["B"], r["H"], r["dtype"]), {})[r["name"]] = float(
                str(r["training_ms"])
            )
        ratios = [t["nn.LSTM"] / t["lstm_fused"] for t in times.values() if "nn.LSTM" in t]
        ahead = sum(ratio > 1 for ratio in ratios)
        print(
            f"verdict: training ahead of nn.LSTM in {ahead} of {len(ratios)} sizes, "
            f"{statistics.median(ratios):.2f}x in the median"
        )
        return
    wrong = check(device, small if arguments.small else CASES)
    if not arguments.small:
        wrong += sanitize()
    print("\n".join(wrong))
    print(f"verdict: {len(wrong)} differences" if wrong else "verdict: the GPU gives what the CPU gives")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
