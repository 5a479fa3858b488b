"""Loads the C++ engine's shared library once, and keeps the reason if that fails."""

import sys
from pathlib import Path

import torch

_LIBRARY = Path(__file__).parents[1] / "_cpp.so"


def _load() -> str | None:
    if not _LIBRARY.exists():
        if sys.platform == "win32":
            return "not built on Windows (MSVC lacks the vector types that it is written in)"
        return "not built (no C++ compiler when lstm_fused was installed)"
    try:
        torch.ops.load_library(_LIBRARY)
        isa()
    except (OSError, RuntimeError) as error:
        return f"{_LIBRARY.name} does not load: {error}"
    return None


def unavailable() -> str | None:
    """The reason the C++ engine cannot be used, or None."""
    return _REASON


def isa() -> str:
    """The instruction set in use; the environment variable LSTM_FUSED_ISA overrides it."""
    return str(torch.ops.lstm_fused.cpp_isa())


def isas() -> list[str]:
    """The compiled instruction sets that this machine can run, the best first."""
    return list(torch.ops.lstm_fused.cpp_isas())


def on_intel() -> bool | None:
    """True on an Intel processor; None if the library, which detects it, does not load."""
    return bool(torch.ops.lstm_fused.cpp_on_intel()) if _REASON is None else None


_REASON = _load()
