"""The engines as data: where each runs, on what, and why not."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lstm_fused.backends import cpp, triton
from lstm_fused.contract import PLAIN, Variant
from lstm_fused.errors import bad, bad_type, shown

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Engine:
    """One implementation of the contract that `lstm_fused.reference` states."""

    name: str
    devices: tuple[str, ...] | None  # None: every device PyTorch has
    dtypes: tuple[torch.dtype, ...]
    unavailable: Callable[[], str | None]  # the reason it cannot run on this machine at all
    narrow_c: bool = False  # whether it saves c in half precision where the tensors are; else in float32
    variants: tuple[str, ...] = Variant._fields  # what it does beyond the textbook

    def dtype_of_c(self, dtype: torch.dtype) -> torch.dtype:
        """What c is saved in for the backward pass, given the tensors' dtype."""
        return dtype if self.narrow_c else torch.promote_types(dtype, torch.float32)

    def why_not(self, device: torch.device, dtype: torch.dtype, variant: Variant = PLAIN) -> list[str]:
        """Every reason this engine cannot take tensors of this device and dtype, or a variant."""
        reasons = []
        if (reason := self.unavailable()) is not None:
            reasons.append(reason)
        if self.devices is not None and device.type not in self.devices:
            reasons.append(f"runs on {', '.join(self.devices)}, not on {device.type}")
        if dtype not in self.dtypes:
            reasons.append(f"takes {', '.join(map(short, self.dtypes))}, not {short(dtype)}")
        missing = () if variant is PLAIN else [name for name in variant.names() if name not in self.variants]
        if missing:
            reasons.append(f"has no {', '.join(missing)}")
        return reasons


REFERENCE = Engine("reference", None, FLOATS, lambda: None)
TRITON = Engine("triton", (triton.DEVICE,), FLOATS, triton.unavailable)

# The first that can serve is taken, so the fastest stand first; but Triton's interpreter is for tests alone.
ENGINES = (
    Engine(
        "cpp",
        ("cpu",),
        (torch.bfloat16, torch.float32, torch.float64),
        cpp.unavailable,
        narrow_c=True,
    ),
    *((REFERENCE, TRITON) if triton.INTERPRETED else (TRITON, REFERENCE)),
)

# Whose operators run an engine that nobody asked for by name, where they are not its own: these give way to
# the reference where a kernel is not known to be right on this card. Both save the same for backward.
UNASKED = {"triton": "triton_or_reference"}
# Every pair of operators, and the engine whose shapes and dtypes they have.
OPERATORS = {engine.name: engine for engine in ENGINES} | {UNASKED["triton"]: TRITON}


def named(name: object, argument: str = "engine") -> list[Engine]:
    """The engine of this name, or every engine, the fastest first, for None.

    Raises:
        ArgumentError: no engine has that name.
    """
    found = [engine for engine in ENGINES if name is None or engine.name == name]
    if not found:
        error = bad if isinstance(name, str) else bad_type
        known = ", ".join(repr(engine.name) for engine in ENGINES)
        raise error(argument, f"one of {known} or None", shown(name))
    return found


def select(name: str | None, device: torch.device, dtype: torch.dtype, variant: Variant = PLAIN) -> str:
    """The engine to use: the one named, which is never replaced by another, or the first that can serve.

    Args:
        name: an engine's name, or None for the best one.
        device: where the tensors are.
        dtype: what they hold.
        variant: what is asked for beyond the textbook.

    Raises:
        ArgumentError: no engine has that name.
        RuntimeError: it, or every engine, cannot serve; the message has each engine's reasons.
    """
    candidates = named(name)
    for engine in candidates:
        # Of what runs elsewhere it is not even asked whether it could: that would wake its device.
        here = engine.devices is None or device.type in engine.devices
        if here and not engine.why_not(device, dtype, variant):
            return engine.name
    refusals = [
        f"{engine.name}: {'; '.join(engine.why_not(device, dtype, variant))}" for engine in candidates
    ]
    wanted = "no engine can" if name is None else f"engine {name!r} cannot"
    raise RuntimeError(f"{wanted} serve {short(dtype)} on {device.type}: " + " | ".join(refusals))


def engines() -> dict[str, str | None]:
    """Every engine, and the reason it cannot run on this machine, or None where it can."""
    return {engine.name: engine.unavailable() for engine in ENGINES}


def short(kind: torch.dtype | torch.layout) -> str:
    """float32 rather than torch.float32."""
    return str(kind).removeprefix("torch.")
