"""The Metal kernels and their tiles, and the choice among them."""

from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from typing import Any, ClassVar

from lstm_fused.kernels.plan import FEW_STEPS, Layer

from lstm_fused.errors import bad, shown

KERNELS = ("resident", "step")  # the fastest first; step takes every layer


@dataclass(frozen=True)
class Plan:
    """A kernel, and the sizes that are compiled in."""

    kernel: str
    BB: int  # batch rows of a threadgroup
    WIDTH: int = 0  # the resident kernel's largest H
    # Steps of a dispatch or command buffer; None: as many as take `AT_ONCE`. Not compiled in.
    at_once: int | None = field(default=None, compare=False)

    BH: ClassVar[int] = 8  # hidden columns of a tile
    precision: ClassVar[str] = "ieee"  # of float32 products

    @property
    def rows(self) -> int:
        """The batch rows of a threadgroup."""
        return self.BB

    @property
    def launch(self) -> Any:
        """The module that runs a layer with this plan."""
        return import_module("lstm_fused.kernels.metal.launch")

    def problems(self, layer: Layer) -> list[tuple[Layer, int]]:
        """The layers and numbers of steps to check before this plan may run a layer.

        Kernels take H, P and T as arguments, so layers of as many tiles have one verdict. The last tile of H
        is full, or has one channel, and so that of P is full in one of the two.
        """
        whole = -(-layer.H // self.BH) * self.BH
        sizes = [(H, max(1, H // 2) if layer.P else 0) for H in (whole, whole - self.BH + 1)]
        return [(layer._replace(H=H, P=P), steps) for (H, P), steps in product(sizes, (FEW_STEPS, 1))]

    def steps_at_once(self, B8: int, H8: int, P8: int) -> int:
        """The steps of one dispatch of a resident kernel, or of one command buffer of step kernels.

        Args:
            B8: batch rows, rounded up to tiles.
            H8: hidden channels, rounded up to tiles.
            P8: channels of h, rounded up to tiles.
        """
        return self.at_once or max(1, int(AT_ONCE / (STEP + 8 * B8 * H8 * P8 / FLOPS)))


# macOS aborts a command buffer that keeps the GPU from drawing for about a second, so a long pass is cut into
# pieces of 20 ms on the slowest chip, an M1, as bench/roofline_metal.py predicts it: microseconds of a step
# without its arithmetic, and floating-point operations per microsecond of 8 x 8 matrices. Not measured; the
# rest of the second is for what the prediction does not know.
STEP = 10.0
FLOPS = 1e6
AT_ONCE = 20_000.0  # microseconds

# H of the resident kernel: 160 bytes of threadgroup memory for each, of 32 KB, and 4 threads, of 1024.
WIDTHS = (32, 64, 128)
# Batch rows of a threadgroup of the step kernel: the fewest that hold the batch, because each threadgroup
# reads the weights of its columns. Not measured.
ROWS = (8, 16, 32)


def plans(layer: Layer, kernel: str | None = None) -> list[Plan]:
    """The plans that can run a layer, in order of preference.

    Args:
        layer: the layer.
        kernel: the only kernel to use, or None.

    Raises:
        ArgumentError: no kernel has that name.
        RuntimeError: the named kernel cannot run the layer.
    """
    if kernel is not None and kernel not in KERNELS:
        raise bad("LSTM_FUSED_KERNEL", f"one of {', '.join(map(repr, KERNELS))}", shown(kernel))
    found = [Plan("step", next((rows for rows in ROWS if rows >= layer.B), ROWS[-1]))]
    if WIDTHS[-1] >= layer.H and not layer.P and not layer.varied:
        width = next(width for width in WIDTHS if width >= layer.H)
        found.insert(0, Plan("resident", 8, width))
    fitting = [plan for plan in found if kernel in (None, plan.kernel)]
    if not fitting:
        raise RuntimeError(
            f"Metal's {kernel} kernel takes H up to {WIDTHS[-1]} without projection and variants, not {layer}"
        )
    return fitting
