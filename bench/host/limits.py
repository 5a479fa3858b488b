"""Measures the limits of this machine, and the floor that they set for an LSTM's time."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from bench.cases import Setting, arithmetic, input_sizes
from bench.host.compiler import compiled
from tests.cases import Case

PROBE = Path(__file__).with_name("probe.cpp")
PROBE_FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
)
RATES = ("fma_rate", "cell_forward_rate", "cell_backward_rate")

# Large square products, x [N, N] by the transpose of w [N, N].
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch.mm": lambda x, w: torch.mm(x, w.T),
    "oneDNN": lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""),
}


@dataclass(frozen=True)
class Limits:
    """Rates of all threads together; those of the probe are None where there is no C++ compiler."""

    products: dict[str, float]  # FLOP/s of a large square product, by library path
    bandwidth: float  # bytes/s, read and written, of copying far more than the caches hold
    fma: float | None = None  # FLOP/s of multiply-adds in registers, in float64 or else in float32
    cell_forward: float | None = None  # channels/s of the elementwise cell, values in the first cache
    cell_backward: float | None = None

    @property
    def peak(self) -> float:
        """The best FLOP/s seen."""
        return max(self.fma or 0.0, *self.products.values())

    def __str__(self) -> str:
        products = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in self.products.items())
        line = f"GFLOP/s of large products: {products}; copying {self.bandwidth / 1e9:.1f} GB/s; "
        if self.fma is None or self.cell_forward is None or self.cell_backward is None:
            return (
                f"{line}no C++ compiler, so neither the peak nor the cell was measured and no floor is known"
            )
        cell = f"{self.cell_forward / 1e9:.2f} and back {self.cell_backward / 1e9:.2f}"
        return f"{line}multiply-adds {self.fma / 1e9:.0f} GFLOP/s; elementwise cell {cell} Gchannels/s"


def floor(case: Case, setting: Setting, what: str, limits: Limits) -> float | None:
    """The least seconds "forward" or "training" can take: arithmetic at peak plus the cell, or the memory.

    floor = max(arithmetic / peak + channels / cell rate, bytes / bandwidth)

    The bytes are those of inputs, weights and outputs, each moved once, and of their gradients.
    """
    if limits.cell_forward is None or limits.cell_backward is None:
        return None
    T, B, I, H, D = case.T, case.B, case.I, case.H, setting.directions
    channels = T * B * H * setting.layers * D
    cell, passes = channels / limits.cell_forward, 1
    if what == "training":
        cell, passes = cell + channels / limits.cell_backward, 2
    weights = sum(4 * H * (inputs + H) * D for inputs in input_sizes(case, setting))
    moved = passes * (T * B * (I + D * H) + weights) * setting.dtype.itemsize
    return max(arithmetic(case, setting, what) / limits.peak + cell, moved / limits.bandwidth)


def measure_limits(dtype: torch.dtype, threads: int, quick: bool) -> Limits:
    """Measure this machine on so many threads."""
    n, copied = (512, 1 << 22) if quick else (2048, 1 << 27)
    seconds = 0.05 if quick else 0.4

    def fastest(call: Callable[[], object]) -> float:
        timer = Timer("call()", globals={"call": call}, num_threads=threads)
        return min(timer.blocked_autorange(min_run_time=seconds).times)

    x, w = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    products = {}
    for name, product in PRODUCTS.items():
        try:
            products[name] = 2 * n**3 / fastest(partial(product, x, w))
        except (AttributeError, NotImplementedError, RuntimeError):
            continue  # not every build of torch has every path for every dtype
    source = torch.zeros(copied, dtype=torch.uint8)
    bandwidth = 2 * copied / fastest(partial(torch.empty_like(source).copy_, source))
    try:
        return Limits(products, bandwidth, *probe(dtype, threads, seconds))
    except OSError:
        return Limits(products, bandwidth)


def probe(dtype: torch.dtype, threads: int, seconds: float) -> list[float]:
    """Run probe.cpp on every thread: the RATES, of bfloat16 in float32."""
    library = compiled(PROBE, *PROBE_FLAGS, f"-DFLOAT={'double' if dtype == torch.float64 else 'float'}")

    def rate(name: str) -> float:
        function = library[name]
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
        with ThreadPoolExecutor(threads) as pool:
            return float(max(sum(pool.map(function, [seconds] * threads)) for _ in range(3)))

    return [rate(name) for name in RATES]
