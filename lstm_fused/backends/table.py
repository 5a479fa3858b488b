"""The table of engines: devices, dtypes and variants of each, and the choice among them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lstm_fused.backends import cpp, metal, triton
from lstm_fused.contract import PLAIN, Variant
from lstm_fused.errors import bad, bad_type, shown

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Engine:
    """An implementation of `lstm_fused.contract`."""

    name: str
    devices: tuple[str, ...] | None  # None: every device of PyTorch
    dtypes: tuple[torch.dtype, ...]
    unavailable: Callable[[], str | None]  # the reason it cannot run on this machine at all
    variants: tuple[str, ...]  # the fields of `Variant` that it computes
    narrow_c: bool = False  # saves c in half precision if the tensors have it, not in float32
    products: bool = False  # forms the products after the recurrence itself

    def dtype_of_c(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which c is saved for the backward pass, given the tensors' dtype."""
        return dtype if self.narrow_c else torch.promote_types(dtype, torch.float32)

    def serves(self, device: torch.device, dtype: torch.dtype, variant: Variant = PLAIN) -> bool:
        """True if this engine can serve this device, dtype and variant.

        Engines of other device types are not queried: the query would initialise their device.
        """
        return (
            (self.devices is None or device.type in self.devices)
            and dtype in self.dtypes
            and (variant is PLAIN or not self.missing(variant))
            and self.unavailable() is None
        )

    def missing(self, variant: Variant) -> list[str]:
        """The names of the variant's parts that this engine does not compute."""
        return [name for name in variant.names() if name not in self.variants]

    def why_not(self, device: torch.device, dtype: torch.dtype, variant: Variant = PLAIN) -> list[str]:
        """All reasons why this engine cannot serve this device, dtype and variant."""
        reasons = []
        if (reason := self.unavailable()) is not None:
            reasons.append(reason)
        if self.devices is not None and device.type not in self.devices:
            reasons.append(f"runs on {', '.join(self.devices)}, not on {device.type}")
        if dtype not in self.dtypes:
            reasons.append(f"takes {', '.join(map(short, self.dtypes))}, not {short(dtype)}")
        if missing := self.missing(variant):
            reasons.append(f"has no {', '.join(missing)}")
        return reasons


REFERENCE = Engine("reference", None, FLOATS, lambda: None, Variant._fields)
# Listed by name, so that a new option is refused until an engine computes it.
VARIANTS = ("gain_hh", "h_mask", "zoneout_h", "zoneout_c", "cell_clip")
CPP = Engine(
    "cpp",
    ("cpu",),
    (torch.bfloat16, torch.float32, torch.float64),
    cpp.unavailable,
    VARIANTS,
    narrow_c=True,
    products=True,
)
TRITON = Engine("triton", (triton.DEVICE,), FLOATS, triton.unavailable, VARIANTS)
METAL = Engine("metal", (metal.DEVICE,), metal.DTYPES, metal.unavailable, VARIANTS)

# Ordered by preference, the fastest first; Triton's interpreter comes last because it is only for tests.
ENGINES = (
    CPP,
    *((METAL, REFERENCE, TRITON) if triton.INTERPRETED else (TRITON, METAL, REFERENCE)),
)

# Operators of engines chosen by default, if they differ from the engine's own: they run the reference if no
# kernel has passed its check on this card. Both save the same tensors for backward.
DEFAULT_OPERATORS = {"triton": "triton_or_reference", "metal": "metal_or_reference"}
# Every pair of operators, with the engine that determines the shapes and dtypes of their results.
OPERATORS = {engine.name: engine for engine in ENGINES}
OPERATORS |= {DEFAULT_OPERATORS[engine.name]: engine for engine in (TRITON, METAL)}


def named(name: object, argument: str = "engine") -> Sequence[Engine]:
    """The engine of this name in a list, or for None every engine, in order of preference.

    Raises:
        ArgumentError: no engine has that name.
    """
    if name is None:
        return ENGINES
    matching = [engine for engine in ENGINES if engine.name == name]
    if not matching:
        error = bad if isinstance(name, str) else bad_type
        known = ", ".join(repr(engine.name) for engine in ENGINES)
        raise error(argument, f"one of {known} or None", shown(name))
    return matching


def select(name: str | None, device: torch.device, dtype: torch.dtype, variant: Variant = PLAIN) -> str:
    """The engine to use: the named one, never replaced by another, or the first that can serve.

    Args:
        name: an engine's name, or None for the best one.
        device: device of the tensors.
        dtype: dtype of the tensors.
        variant: options of the recurrence.

    Raises:
        ArgumentError: no engine has that name.
        RuntimeError: the named engine, or every engine, cannot serve; the message has the reasons.
    """
    candidates = named(name)
    for engine in candidates:
        if engine.serves(device, dtype, variant):
            return engine.name
    refusals = [
        f"{engine.name}: {'; '.join(engine.why_not(device, dtype, variant))}" for engine in candidates
    ]
    wanted = "no engine can" if name is None else f"engine {name!r} cannot"
    raise RuntimeError(f"{wanted} serve {short(dtype)} on {device.type}: " + " | ".join(refusals))


def engines() -> dict[str, str | None]:
    """Every engine with the reason why it cannot run on this machine, or None.

    Examples:
        >>> lstm_fused.engines()["reference"] is None
        True
    """
    return {engine.name: engine.unavailable() for engine in ENGINES}


def short(kind: torch.dtype | torch.layout) -> str:
    """The name without "torch.", such as float32."""
    return str(kind).removeprefix("torch.")
