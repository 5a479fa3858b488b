"""Stands in for ``torch.mps.compile_shader`` on CPU tensors, with PyTorch's calling convention.

It is stricter than PyTorch: types of tensors and sizes of scalars must be those of the kernel's parameters.
"""

import ctypes
import os
import struct
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest import mock

import torch
from torch import Tensor

from . import build, source

CASTS = {"fp16": torch.float16, "bf16": torch.bfloat16, "int32": torch.int32, "int16": torch.int16}
CASTS |= {"int8": torch.int8, "uint8": torch.uint8}
FLOATS = {("f", 4): torch.float32, ("f", 8): torch.float64, ("h", 2): torch.float16, ("b", 2): torch.bfloat16}


class KernelError(RuntimeError):
    """What would be undefined behaviour on a GPU: a race, a barrier that not all threads reach."""


@dataclass(frozen=True)
class Options:
    """How the kernels are compiled and run."""

    mode: str = "fast"  # or "races": detects them; "double": float is double
    seed: int = 0  # order of threadgroups, simdgroups and lanes; 0: ascending
    silenced: int = 0  # the line of a barrier that is left out
    record: list | None = field(default=None, compare=False)  # of all dispatches, for replay.cpp


options = Options()


@contextmanager
def emulated(**changes):
    """Run torch.mps.compile_shader here, within the context; memory of torch.empty is NaN."""
    global options
    before, options = options, replace(options, **changes)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        with (
            mock.patch.object(torch.mps, "compile_shader", compile_shader),
            mock.patch.object(torch.mps.event, "Event"),
        ):
            yield
    finally:
        options = before
        torch.use_deterministic_algorithms(deterministic)


class Parameter(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_char), ("element", ctypes.c_char), ("size", ctypes.c_uint32)]
    _fields_ += [("element_size", ctypes.c_uint32), ("constant", ctypes.c_bool)]


class Range(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("bytes", ctypes.c_size_t), ("number", ctypes.c_uint32)]


class Dispatch(ctypes.Structure):
    _fields_ = [("grid", ctypes.c_uint32 * 3), ("group_size", ctypes.c_uint32 * 3), ("seed", ctypes.c_uint32)]
    _fields_ += [
        ("silenced", ctypes.c_uint32),
        ("buffers", ctypes.c_uint32),
        ("device", ctypes.POINTER(Range)),
    ]


def compile_shader(text: str) -> "Library":
    """Compile Metal text; SyntaxError if that fails."""
    return Library(text, options.mode)


class Library:
    """Kernels as attributes; `pipelines` are those that were taken, when PyTorch builds their pipelines."""

    def __init__(self, text: str, mode: str):
        self.pipelines = set()
        kernels, path = build.build(text, mode)
        self._library = ctypes.CDLL(str(path))
        self._library.emulation_run.restype = ctypes.c_char_p
        self._kernels = {
            kernel.name: Kernel(self._library, n, kernel, mode) for n, kernel in enumerate(kernels)
        }

    def __dir__(self):
        return list(self._kernels)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._kernels:
            raise RuntimeError(f"Failed to create function state object for: {name}")
        self.pipelines.add(name)
        return self._kernels[name]


class Kernel:
    """A kernel, to be called with tensors and numbers."""

    thread_execution_width = 32

    def __init__(self, library, number: int, kernel: source.Kernel, mode: str):
        self.name, self.mode, self.max_threads_per_threadgroup = kernel.name, mode, kernel.max_threads
        self._library, self._number = library, number
        parameters = (Parameter * 64)()
        count = library.emulation_describe(number, parameters)
        assert count == len(kernel.bindings), kernel
        self._buffers = {
            b: p for b, p in zip(kernel.bindings, parameters, strict=False) if isinstance(b, int)
        }

    def __call__(self, *args, threads=None, group_size=None, arg_casts=None, error_buf_idx=None):
        if error_buf_idx is not None:
            raise NotImplementedError("error_buf_idx")
        if set(self._buffers) != set(range(len(args))):
            raise TypeError(f"{self.name} takes buffers {sorted(self._buffers)}, not {len(args)} arguments")
        held = [self._argument(i, arg, arg_casts) for i, arg in enumerate(args)]
        if threads is None:
            threads = next((arg.numel() for arg in args if isinstance(arg, Tensor)), None)
        grid, group = self._sizes(threads, group_size)
        pointers = (ctypes.c_void_p * len(args))()
        storages = {}
        for i, value in enumerate(held):
            if isinstance(value, Tensor):
                pointers[i] = value.data_ptr()
                storage = value.untyped_storage()
                storages.setdefault(storage.data_ptr(), (storage.nbytes(), i))
            else:
                pointers[i] = ctypes.addressof(value)
        if options.record is not None:
            options.record.append((self._number, grid, group, [as_bytes(value) for value in held]))
        ranges = (Range * max(len(storages), 1))(
            *(Range(start, *rest) for start, rest in storages.items() if start)
        )
        dispatch = Dispatch(grid, group, options.seed, options.silenced, sum(map(bool, storages)), ranges)
        error = self._library.emulation_run(self._number, pointers, ctypes.byref(dispatch))
        if error:
            raise KernelError(f"{self.name}: {build.with_lines(error.decode(), self._library._name)}")

    def _sizes(self, threads, group_size):
        """The grid and the threadgroup, three sizes each."""
        if threads is None:
            raise RuntimeError("Number of threads is undefined or has wrong dimension")
        threads = (threads,) if isinstance(threads, int) else tuple(threads)
        limit = self.max_threads_per_threadgroup
        if group_size is None:
            group_size = (min(threads[0], limit) if len(threads) == 1 else limit, 1, 1)[: len(threads)]
        group_size = (group_size,) if isinstance(group_size, int) else tuple(group_size)
        if not 0 < len(threads) < 4 or len(threads) != len(group_size):
            raise RuntimeError("size and group_size must have same number of dimensions")
        grid, group = (*threads, 1, 1), (*group_size, 1, 1)
        if group[0] * group[1] * (group[2] if len(group_size) > 2 else 1) > limit:
            raise ValueError(f"Threadgroup size exceeds {limit} limit")
        if min(grid[:3]) < 1 or min(group[:3]) < 1:
            raise ValueError(f"Metal dispatches no empty grid: threads={threads}, group_size={group_size}")
        return (ctypes.c_uint32 * 3)(*grid[:3]), (ctypes.c_uint32 * 3)(*group[:3])

    def _argument(self, index, arg, casts):
        """The tensor, or the bytes of a scalar or of several, in a buffer."""
        parameter = self._buffers[index]
        where = f"{self.name}, argument {index}"
        element = parameter.element.decode()
        if isinstance(arg, Tensor):
            if arg.device.type != "cpu":
                raise RuntimeError(f"{where}: the emulation takes CPU tensors, not {arg.device.type}")
            if arg.dtype == torch.float64 and self.mode != "double":
                raise TypeError(f"{where}: MPS has no float64")
            wanted = FLOATS.get((element, parameter.element_size))
            fits = element == "?" or arg.dtype == wanted
            if element == "i":
                fits = not arg.dtype.is_floating_point and arg.element_size() == parameter.element_size
            if not fits:
                kind = wanted or f"integers of {parameter.element_size} bytes"
                raise TypeError(f"{where}: {arg.dtype}, but the kernel reads {kind}")
            return arg
        cast = casts.get(index) if isinstance(casts, dict) else casts
        data = self._scalars(where, arg, cast)
        if not parameter.constant:
            raise TypeError(f"{where}: numbers can be read only; the parameter is not constant")
        floating = isinstance(arg[0] if isinstance(arg, (tuple, list)) else arg, float)
        kind = cast[0] if cast in ("fp16", "bf16") else "i" if cast else "f" if floating else "i"
        kind = "h" if cast == "fp16" else kind
        if element not in ("?", kind):
            raise TypeError(f"{where}: the kernel reads {element} where {arg!r} is passed as {kind}")
        if len(data) < parameter.size:
            raise TypeError(f"{where}: {arg!r} has {len(data)} bytes, the kernel reads {parameter.size}")
        if len(data) > 4096:
            raise ValueError(f"{where}: Metal takes up to 4096 bytes at once")
        return (ctypes.c_char * len(data)).from_buffer_copy(data)

    def _scalars(self, where, arg, cast) -> bytes:
        """Python's numbers as PyTorch passes them: int64 and float32, unless cast."""
        values = list(arg) if isinstance(arg, (tuple, list)) else [arg]
        if not values:
            raise RuntimeError(f"{where}: Empty list/tuple can not be an argument to metal kernel")
        if not isinstance(values[0], (int, float)):
            raise RuntimeError(f"{where}: Unsupported argument type {type(values[0]).__name__}")
        if cast is not None:
            if cast not in CASTS:
                raise RuntimeError(f"{where}: Unsupported cast instruction {cast}")
            return bytes(torch.tensor(values).to(CASTS[cast]).view(torch.uint8).numpy())
        if isinstance(values[0], int):
            return struct.pack(f"<{len(values)}q", *values)
        return struct.pack(f"<{len(values)}{'d' if self.mode == 'double' else 'f'}", *values)


def as_bytes(value) -> bytes:
    """The bytes from a tensor's first element to its last, or those of numbers."""
    if not isinstance(value, Tensor):
        return bytes(value)
    extent = 0
    if value.numel():
        extent = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
    return bytes(value.as_strided((extent,), (1,)).view(torch.uint8).numpy())


def replay(text: str, mode: str, record: list, silenced: int = 0) -> None:
    """Run recorded dispatches under a sanitizer: mode "asan" or "tsan"; KernelError with its report."""
    _, program = build.build(text, mode)
    with tempfile.NamedTemporaryFile() as file:
        for number, grid, group, buffers in record:
            file.write(struct.pack("<8I", number, *grid, *group, len(buffers)))
            for data in buffers:
                file.write(struct.pack("<Q", len(data)) + data)
        file.flush()
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "SILENCED_BARRIER": str(silenced)}
        done = subprocess.run([program, file.name], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise KernelError(done.stderr)
