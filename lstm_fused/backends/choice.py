"""Says which engine serves a call and why, and once if it is a slow one."""

import os
import warnings
from dataclasses import dataclass

import torch

from lstm_fused.backends import cpp, triton
from lstm_fused.backends.table import DEFAULT_OPERATORS, named, select, short
from lstm_fused.contract import Variant
from lstm_fused.errors import SlowEngineWarning

CHECKED = "each kernel if it is right on this card: python -m lstm_fused lists them"


@dataclass(frozen=True)
class Choice:
    """The engine that serves a call, and why; as a string, one sentence.

    Attributes:
        engine: its name, "cpp", "triton", "metal" or "reference".
        detail: the instruction set of the C++ engine; for those on GPUs, what their kernels depend on.
        refused: the reasons of the engines that are preferred on this device but cannot serve, by name.
        asked: whether the module's ``engine`` names it.
    """

    engine: str
    detail: str
    refused: dict[str, str]
    asked: bool

    def __str__(self) -> str:
        """One sentence."""
        said = self.engine + (f" ({self.detail})" if self.detail else "")
        if self.asked:
            return f"{said}, as engine={self.engine!r} says"
        reasons = "; ".join(f"{name} {why}" for name, why in self.refused.items())
        return said + (f", because {reasons}" if reasons else "")


def explain(name: str | None, device: torch.device, dtype: torch.dtype, variant: Variant) -> Choice:
    """What `select` takes, and why.

    Raises:
        RuntimeError: the named engine cannot serve.
    """
    chosen = select(name, device, dtype, variant)
    refused = {}
    for engine in named(name):
        if engine.name == chosen:
            break
        if engine.devices is None or device.type in engine.devices:
            refused[engine.name] = "; ".join(engine.why_not(device, dtype, variant))
    checked = chosen in DEFAULT_OPERATORS
    if checked and name is None and os.environ.get("LSTM_FUSED_GPU") == "off":
        checked, chosen, refused = False, "reference", {chosen: "is turned off by LSTM_FUSED_GPU"}
    if chosen == "reference" and not refused and name is None:
        refused = {"no other engine": f"runs on {device.type}"}
    detail = CHECKED if checked else cpp.isa() if chosen == "cpp" else ""
    return Choice(chosen, detail, refused, name is not None)


_noticed: set[tuple[str, torch.dtype]] = set()


def notice(device: torch.device, dtype: torch.dtype, variant: Variant) -> None:
    """Warn once for each device type and dtype that plain PyTorch serves a call that is slow there.

    Nothing is said where the C++ engine is missing altogether: the import says that.
    """
    key = device.type, dtype
    if key in _noticed or device.type == "meta":
        return
    if device.type == "cpu" and (cpp.unavailable() is not None or triton.INTERPRETED):
        return
    _noticed.add(key)
    reasons = "; ".join(f"{n} {why}" for n, why in explain(None, device, dtype, variant).refused.items())
    faster = " float32 and bfloat16 are several times as fast." if dtype == torch.float16 else ""
    warnings.warn(
        f"lstm_fused runs {short(dtype)} on {device.type} in plain PyTorch, step by step, because {reasons}."
        f"{faster if device.type == 'cpu' else ''} engine='reference' silences this.",
        SlowEngineWarning,
        stacklevel=2,
    )
