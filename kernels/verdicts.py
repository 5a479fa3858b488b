"""The verdicts of checks on this machine's plans, cached on disk, so that other processes need no check.

There is a file for each plan, in a folder for each card, driver, compiler, torch and hash of the sources,
in the user's cache folder or in LSTM_FUSED_CACHE. A file that cannot be read counts as missing; if none can
be written, each process checks for itself.
"""

import hashlib
import json
import os
import platform
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import torch
from lstm_fused.kernels.choose import card_at
from lstm_fused.kernels.plan import Layer, Plan

from lstm_fused.backends import streams

SOURCES = Path(__file__).parent


@dataclass(frozen=True)
class Verdict:
    """Whether a plan was right, and the numbers; ``lasting`` if it holds for other processes too."""

    right: bool
    said: str
    lasting: bool = True
    name: str = ""  # of the plan


# The verdicts that this process has found or read.
_known: dict[tuple[str, str], Verdict] = {}


def find(plan: Plan, layer: Layer, device: torch.device) -> Verdict | None:
    """The verdict on a plan, if it is known."""
    key = machine(device), name(plan, layer)
    if key not in _known and (folder := cache_folder()) is not None:
        verdict = read(folder / key[0] / f"{key[1]}.json")
        if verdict is not None:
            _known[key] = verdict
    return _known.get(key)


def keep(plan: Plan, layer: Layer, device: torch.device, verdict: Verdict) -> None:
    """Remember a verdict, on disk if possible."""
    key = machine(device), name(plan, layer)
    _known[key] = verdict
    if verdict.lasting and (folder := cache_folder()) is not None:
        write(folder / key[0] / f"{key[1]}.json", verdict)


def on_record(device: torch.device) -> list[Verdict]:
    """All verdicts on disk that apply to a device in its present state."""
    folder = cache_folder()
    try:
        paths = [] if folder is None else sorted((folder / machine(device)).glob("*.json"))
    except OSError:
        paths = []
    return [verdict for path in paths if (verdict := read(path)) is not None]


def read(path: Path) -> Verdict | None:
    """The verdict in a file, or None if there is none."""
    try:
        found = json.loads(path.read_text())
        right, said = found["right"], found["said"]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    if not isinstance(right, bool) or not isinstance(said, str):
        return None
    return Verdict(right, said, name=path.stem)


def write(path: Path, verdict: Verdict) -> None:
    """Write a verdict to a file atomically."""
    part = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"right": verdict.right, "said": verdict.said}) + "\n")
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()


def cache_folder() -> Path | None:
    """The folder of verdicts, or None if the user has no home."""
    if named := os.environ.get("LSTM_FUSED_CACHE"):
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return Path(shared if os.path.isabs(shared) else Path.home() / ".cache") / "lstm_fused"
    except RuntimeError:
        return None


def name(plan: Plan, layer: Layer) -> str:
    """The name of a plan: all that is compiled in, and the size of the first layer that it is checked on."""
    checked, _ = plan.problems(layer)[0]
    dtype = str(layer.dtype).removeprefix("torch.")
    kind = [layer.direction, plan.kernel, dtype, f"H{checked.H}"]
    kind += [f"projection{checked.P}"] * (checked.P > 0) + ["variant"] * layer.varied
    kind += [f"streams{layer.streams}"] * (layer.streams > 1)
    # The number of tiles of a launch does not change the code, nor does the precision of float32 products in
    # other dtypes.
    other = {"kernel", "at_once"} if layer.dtype == torch.float32 else {"kernel", "at_once", "precision"}
    kind += [f"{f.name}{getattr(plan, f.name)}" for f in fields(plan) if f.name not in other]
    return slug("_".join(kind))


@cache
def machine(device: torch.device) -> str:
    """The name of everything else that a verdict depends on."""
    if device.type == "mps":  # the driver and the compiler are parts of macOS
        compiler = f"macos{platform.mac_ver()[0]}"
        # PyTorch compiles with safe math unless this says otherwise.
        if (fast := os.environ.get("PYTORCH_MPS_FAST_MATH", "0")) != "0":
            compiler += f"-fastmath{fast}"
    else:
        import triton  # not installed on Macs

        compiler = f"{driver()}_triton{triton.__version__}"
    versions = f"torch{torch.__version__}_{compiler}_{sources(SOURCES)}"
    return slug(f"{card_name(device)}_{versions}")


def card_name(device: torch.device) -> str:
    """The name of the card."""
    if device.type == "mps":
        return torch.backends.mps.get_name()
    return card_at(device).name


def driver() -> str:
    """The driver's version, if it can be read without starting another program."""
    try:
        of = "/sys/module/amdgpu/version" if torch.version.hip else "/proc/driver/nvidia/version"
        if found := re.search(r"\d+\.\d[.\d]*", Path(of).read_text()):
            return found[0]
    except (OSError, ValueError):
        pass
    try:
        return str(torch._C._cuda_getDriverVersion())  # CUDA's, which is coarser
    except (AttributeError, RuntimeError):
        return "unknown"


@cache
def sources(folder: Path) -> str:
    """A hash of the sources that may change what is compiled, or how two launches run at the same time."""
    found = hashlib.sha256()
    for path in (*sorted((*folder.rglob("*.py"), *folder.rglob("*.metal"))), Path(streams.__file__)):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def slug(text: str) -> str:
    """The text as a file name."""
    return re.sub(r"[^\w.+-]+", "-", text)
