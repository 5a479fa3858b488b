"""Loads the C++ engine's shared library once; if that fails, keeps the reason and warns once."""

import sys
import warnings
from pathlib import Path

import torch

from lstm_fused.contract import SCHEMAS

_LIBRARY = Path(__file__).parents[1] / "_cpp.so"
_REINSTALL = "then install lstm_fused again: pip install --force-reinstall --no-deps --no-cache-dir ..."
# What cpp_plan returns.
_PLAN = ("threads", "min_rows_per_thread", "packs", "streaming_stores", "prefetches", "x_steps", "step_ns")
_OTHER_PLANS = {
    "products": ("threads", "outer_products", "KC", "packs", "copies_dxw", "double_buffer"),
    "gradients": ("threads", "block_steps", "keeps_da"),
}


def _load() -> tuple[str | None, str | None]:
    """The reason why the engine cannot be used, and what helps; None where there is none."""
    if not _LIBRARY.exists():
        if sys.platform == "win32":
            return "not built on Windows (MSVC lacks the vector types that it is written in)", None
        clone = _LIBRARY.parents[1]
        if (clone / "csrc").exists():  # Python prefers the folder it runs in to what is installed
            cure = "run Python in another folder, or pip install -e ., which needs a C++20 compiler"
            return f"not built in the clone {clone}", cure
        return "not built (no C++ compiler when lstm_fused was installed)", f"get one, {_REINSTALL}"
    try:
        torch.ops.load_library(_LIBRARY)
    except OSError as error:  # torch names the file, and the loader's own words are the cause
        reason = f"{_LIBRARY.name} does not load: {error.__cause__ or error}"
        if _torch_version() < (2, 11):
            return reason, f"it needs torch 2.11 or newer, and this is {torch.__version__}"
        return reason, f"if the file is damaged or of another system, {_REINSTALL}"
    for name, expected in SCHEMAS.items():
        operator = getattr(torch.ops.lstm_fused, f"cpp_{name}", None)  # none in a build before the stable ABI
        found = "" if operator is None else str(operator.default._schema)
        if not found.endswith(f"cpp_{name}{expected}"):
            return f"{_LIBRARY.name} is of another version of lstm_fused: cpp_{name} differs", _REINSTALL
    try:
        isa()
    except RuntimeError as error:
        return f"{_LIBRARY.name} does not load: {error}", None
    return None, None


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


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


def plan(
    isa: str, dtype: torch.dtype, sizes: list[int], call: str, threads: int, l2_bytes: int
) -> dict[str, int]:
    """How the engine runs a layer with weight_ih on any compiled instruction set (csrc/plan).

    Args:
        isa: the instruction set's name.
        dtype: dtype of the tensors.
        sizes: T, B, I, H and P.
        call: "forward", "saving forward", "backward", "products" or "gradients".
        threads: threads that the call may use.
        l2_bytes: size of a core's L2 cache.

    Raises:
        RuntimeError: the instruction set is not compiled, or the sizes are not five.
    """
    names = _OTHER_PLANS.get(call, _PLAN)
    numbers = torch.ops.lstm_fused.cpp_plan(isa, dtype, sizes, call, threads, l2_bytes)
    return dict(zip(names, numbers, strict=True))


_REASON, _CURE = _load()
if _REASON is not None and sys.platform != "win32":
    warnings.warn(
        f"lstm_fused runs without its C++ engine, in plain PyTorch on CPUs: {_REASON}"
        + (f"; {_CURE}" if _CURE else ""),
        RuntimeWarning,
        stacklevel=2,
    )
