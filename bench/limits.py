"""What this machine can do at most, and the time no LSTM can stay below on it."""

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.sizes import Setting
from tests.cases import Case

PROBE = Path(__file__).with_name("probe.cpp")
PROBE_FLAGS = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno"]
PROBE_FLAGS += ["-fno-trapping-math", "-shared", "-fPIC"]

# Large square products, x [N, N] by the transpose of w [N, N].
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch.mm": lambda x, w: torch.mm(x, w.T),
    "oneDNN": lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""),
}


@dataclass(frozen=True)
class Limits:
    """Rates of all threads together; those of the probe are None where no C++ compiler is."""

    products: dict[str, float]  # FLOP/s of a large square product, by library path
    bandwidth: float  # bytes/s, read and written, of copying far more than the caches hold
    fma: float | None  # FLOP/s of float32 multiply-adds in registers
    cell_forward: float | None  # channels/s of the elementwise cell, values in the first cache
    cell_backward: float | None

    @property
    def peak(self) -> float:
        """The best FLOP/s seen."""
        return max(self.fma or 0.0, *self.products.values())


def floor(case: Case, setting: Setting, what: str, limits: Limits) -> float | None:
    """The least seconds "forward" or "training" can take: arithmetic at peak plus the cell, or the memory.

    floor = max(arithmetic / peak + channels / cell rate, bytes / bandwidth)

    The bytes are those of inputs, weights and outputs, each moved once, and of their gradients.
    """
    if limits.cell_forward is None or limits.cell_backward is None:
        return None
    T, B, I, H = case.T, case.B, case.I, case.H
    channels = T * B * H * setting.layers * setting.directions
    cell, passes = channels / limits.cell_forward, 1
    if what == "training":
        cell, passes = cell + channels / limits.cell_backward, 2
    D = setting.directions
    weights = sum(4 * H * (inputs + H) * D for inputs in input_sizes(case, setting))
    values = T * B * (I + D * H) + weights
    moved = passes * values * setting.dtype.itemsize
    return max(arithmetic(case, setting, what) / limits.peak + cell, moved / limits.bandwidth)


def arithmetic(case: Case, setting: Setting, what: str) -> float:
    """FLOP of the products with W_ih and W_hh; backward has two for each: data and weight gradient."""
    per_row = sum(2 * 4 * case.H * (inputs + case.H) for inputs in input_sizes(case, setting))
    steps = case.T * case.B if case.lengths is None else sum(case.lengths)
    return float(steps * per_row * setting.directions * (3 if what == "training" else 1))


def input_sizes(case: Case, setting: Setting) -> list[int]:
    """What each layer takes in."""
    return [case.I, *[case.H * setting.directions] * (setting.layers - 1)]


def measure(dtype: torch.dtype, threads: int, quick: bool) -> Limits:
    """Measure this machine, with torch set to the same number of threads."""
    n, copied = (512, 1 << 22) if quick else (2048, 1 << 27)
    seconds = 0.05 if quick else 0.4
    x, w = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    products = {}
    for name, product in PRODUCTS.items():
        try:
            products[name] = 2 * n**3 / fastest(partial(product, x, w), seconds)
        except (AttributeError, NotImplementedError, RuntimeError):
            continue  # not every build of torch has every path for every dtype
    source = torch.zeros(copied, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Limits(
        products,
        2 * copied / fastest(partial(target.copy_, source), seconds),
        *probe(threads, seconds),
    )


def fastest(call: Callable[[], object], seconds: float) -> float:
    """The least time of a call, over at least this long and 3 calls."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def probe(threads: int, seconds: float) -> tuple[float | None, float | None, float | None]:
    """Compile probe.cpp and run it on every thread: rates of multiply-adds, cell forward and backward."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "probe.so"
        command = [*os.environ.get("CXX", "c++").split(), *PROBE_FLAGS, "-o", str(library), str(PROBE)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None, None, None
        loaded = ctypes.CDLL(str(library))

    def rate(name: str) -> float:
        function = loaded[name]
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
        with ThreadPoolExecutor(threads) as pool:
            return float(max(sum(pool.map(function, [seconds] * threads)) for _ in range(3)))

    return rate("fma_rate"), rate("cell_forward_rate"), rate("cell_backward_rate")
