"""The Metal kernels and their tiles, and the choice among them."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from lstm_fused.kernels.plan import Layer

from lstm_fused.errors import bad, shown

KERNELS = ("resident", "step")  # the fastest first; step takes every layer


@dataclass(frozen=True)
class Plan:
    """A kernel, and the sizes that are compiled in."""

    kernel: str
    BB: int  # batch rows of a threadgroup
    WIDTH: int = 0  # the resident kernel's largest H

    BH: ClassVar[int] = 8  # hidden columns of a tile
    precision: ClassVar[str] = "ieee"  # of float32 products
    at_once: ClassVar[None] = None  # batch tiles of a dispatch: all of them

    @property
    def launch(self) -> Any:
        """The module that runs a layer with this plan."""
        return import_module("lstm_fused.kernels.metal.launch")


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
    if WIDTHS[-1] >= layer.H and not layer.projection and not layer.varied:
        width = next(width for width in WIDTHS if width >= layer.H)
        found.insert(0, Plan("resident", 8, width))
    fitting = [plan for plan in found if kernel in (None, plan.kernel)]
    if not fitting:
        raise RuntimeError(
            f"Metal's {kernel} kernel takes H up to {WIDTHS[-1]} without projection and variants, not {layer}"
        )
    return fitting
