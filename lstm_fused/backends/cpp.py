"""The C++ engine's shared library, loaded once; where that fails, the reason."""

from pathlib import Path

import torch

_LIBRARY = Path(__file__).parents[1] / "_cpp.so"


def _load() -> str | None:
    if not _LIBRARY.exists():
        return "not built (no C++ compiler when lstm_fused was installed)"
    try:
        torch.ops.load_library(_LIBRARY)
        isa()
    except (OSError, RuntimeError) as error:
        return f"{_LIBRARY.name} does not load: {error}"
    return None


def unavailable() -> str | None:
    """Why the C++ engine cannot be used, or None where it can."""
    return _REASON


def isa() -> str:
    """The instruction set in use; LSTM_FUSED_ISA in the environment chooses another."""
    return str(torch.ops.lstm_fused.cpp_isa())


def isas() -> list[str]:
    """Every instruction set that the engine was compiled for and this machine runs, the best first."""
    return list(torch.ops.lstm_fused.cpp_isas())


def on_intel() -> bool | None:
    """Whether Intel made the processor; None where the library does not load, for nobody else tells."""
    return bool(torch.ops.lstm_fused.cpp_on_intel()) if _REASON is None else None


_REASON = _load()
