"""The machine and the versions that a measurement was made with."""

import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import lstm_fused
from lstm_fused.backends import cpp

ROOT = Path(__file__).resolve().parents[2]
# The processor's flags that matter to float kernels.
FLAGS = (
    *("fma", "f16c", "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"),
    *("asimd", "sve", "sve2", "bf16"),
)
LIBRARIES = ("onnxruntime", "onednn-cpu-gomp", "tensorflow-cpu", "tensorflow", "jax")


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
    lstm_fused_isa: str | None  # of the C++ engine
    rivals: dict[str, str | None]  # versions of other libraries, None where not installed
    date: str
    commit: str | None

    def __str__(self) -> str:
        return (
            f"{self.cpu} ({' '.join(self.cpu_flags)}), torch {self.torch}, lstm_fused {self.lstm_fused} "
            f"at {self.commit} with {self.lstm_fused_isa}, {self.date}"
        )


@dataclass(frozen=True)
class GpuMachine:
    """A GPU, its software, and the machine it is in."""

    gpu: str
    capability: str
    multiprocessors: int
    memory: int  # bytes
    runtime: str
    cudnn: int | None
    triton: str
    host: Machine

    def __str__(self) -> str:
        return (
            f"{self.gpu} ({self.capability}, {self.multiprocessors} multiprocessors, "
            f"{self.memory >> 30} GiB), {self.runtime}, cuDNN {self.cudnn}, triton {self.triton}, "
            f"python {self.host.python}, {self.host}"
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
        rivals={name: installed(name) for name in LIBRARIES},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
    )


def describe_gpu(device: str) -> GpuMachine:
    """This machine and its GPU, now."""
    import triton  # on AMD's cards and in nightly builds the package has another name

    if device != "cuda":
        return GpuMachine(
            "Triton's interpreter", "none", 0, 0, "no GPU", None, triton.__version__, describe()
        )
    p: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    amd = torch.version.hip is not None
    return GpuMachine(
        p.name,
        p.gcnArchName if amd else f"sm_{p.major}{p.minor}",
        p.multi_processor_count,
        p.total_memory,
        f"ROCm {torch.version.hip}" if amd else f"CUDA {torch.version.cuda}",
        torch.backends.cudnn.version(),
        triton.__version__,
        describe(),
    )


def processor() -> tuple[str, list[str]]:
    """The processor's name and those of FLAGS it has, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    has = (facts.get("flags") or facts.get("Features") or "").split()
    return facts.get("model name", platform.machine()), [flag for flag in FLAGS if flag in has]


def installed(package: str) -> str | None:
    """The version of a package."""
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
