"""Where and with what a measurement was made."""

import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import lstm_fused
from lstm_fused.backends import cpp

ROOT = Path(__file__).resolve().parent.parent
# Of what the processor says it has, what a float kernel can be written with.
FLAGS = (
    *("fma", "f16c", "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"),
    *("asimd", "sve", "sve2", "bf16"),
)

RIVALS = ("onnxruntime", "onednn-cpu-gomp", "tensorflow-cpu", "tensorflow", "jax")


@dataclass(frozen=True)
class Machine:
    """Versions, processor, instruction sets, date and commit."""

    cpu: str
    cpu_flags: list[str]
    system: str
    python: str
    torch: str
    torch_isa: str
    lstm_fused: str
    lstm_fused_isa: str | None  # what the C++ engine uses
    rivals: dict[str, str | None]  # versions of what else may be raced, None where not installed
    date: str
    commit: str | None

    def __str__(self) -> str:
        return (
            f"{self.cpu} ({' '.join(self.cpu_flags)}), torch {self.torch}, lstm_fused {self.lstm_fused} "
            f"at {self.commit} with {self.lstm_fused_isa}, {self.date}"
        )


def describe() -> Machine:
    """This machine, now."""
    name, flags = processor()
    return Machine(
        cpu=name,
        cpu_flags=flags,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        torch_isa=torch.backends.cpu.get_cpu_capability(),
        lstm_fused=lstm_fused.__version__,
        lstm_fused_isa=cpp.isa() if cpp.unavailable() is None else None,
        rivals={name: installed(name) for name in RIVALS},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
    )


def processor() -> tuple[str, list[str]]:
    """Its name and those of FLAGS it has, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), []
    facts: dict[str, str] = {}
    for key, _, value in (line.partition(":") for line in lines):
        facts.setdefault(key.strip(), value.strip())
    has = (facts.get("flags") or facts.get("Features") or "").split()
    return facts.get("model name", platform.machine()), [flag for flag in FLAGS if flag in has]


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit that is checked out, and whether files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
