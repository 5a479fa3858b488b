"""CUDA graphs for the step kernels, one for all calls of a layer: whatever T, wherever the tensors lie.

A graph is a list of launches with their arguments. Those of a step kernel are the same for every call, for
it reads addresses and times from a table on the device, which each call fills anew by one small launch.
Setting the arguments of a graph's launches anew would take the host about a microsecond for each of them, a
plain launch ten; the table takes the device one trip to L2, most of it while the step before still runs.

A stream has tables and graphs of its own, so its order keeps two calls apart; a lock keeps two threads apart
that share it. A graph is recorded on a stream that nobody else has, and by the CUDA runtime itself, so that
neither PyTorch's allocator nor its generators think that a capture is under way, whatever becomes of it.
"""

import ctypes
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from lstm_fused.kernels.table import ADDRESSES, NUMBERS, lstm_advance_kernel, lstm_table_kernel
from torch import Tensor

KEPT = 64  # layers whose graphs are kept, on each of their streams
LONGEST = 64  # steps of a graph; shorter ones are half of that, a quarter and so on
RELAXED = 2  # the capture mode in which a thread may do anything that it does not capture
NON_BLOCKING = 1  # a stream that does not wait for the default one, nor breaks it while it is captured


class Launch(NamedTuple):
    """What a step launches, besides its table and its number."""

    kernel: Any
    grid: tuple[int, ...]
    options: tuple[tuple[str, Hashable], ...]


class Steps(NamedTuple):
    """So many steps, in an order of time."""

    launches: tuple[Launch, ...]  # of each step
    count: int
    T: int
    first: int  # its t
    stride: int  # 1 or -1

    def fill(self, table: Tensor, tensors: tuple[Tensor | None, ...]) -> None:
        """Write what the launches read."""
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        addresses += [0] * (ADDRESSES - len(addresses))
        lstm_table_kernel[(1,)](table, self.T, self.first, self.stride, *addresses)

    def launch(self, table: Tensor, count: int) -> None:
        """Launch so many steps."""
        for node in range(count):
            for kernel, grid, options in self.launches:
                kernel[grid](table, node, **dict(options))


def run(steps: Steps, tensors: tuple[Tensor | None, ...], device: torch.device) -> None:
    """Run the steps, from graphs where they have run before on this stream."""
    stream = stream_for_graphs(device)
    if stream is None:
        table = new_table(device)
        steps.fill(table, tensors)
        return steps.launch(table, steps.count)
    key = steps.launches, device, stream
    with _lock:
        recorded = _recorded.pop(key, None)
        if recorded is None:
            recorded = Recorded(device)
            if in_a_pool(recorded.table):
                steps.fill(recorded.table, tensors)
                return steps.launch(recorded.table, steps.count)
        _recorded[key] = recorded
        if len(_recorded) > KEPT:
            _recorded.popitem(last=False)
    with recorded.lock:
        recorded.run(steps, tensors, stream)


def stream_for_graphs(device: torch.device) -> int | None:
    """The current stream; None where there can be no graph: no GPU, the user captures, graphs fail."""
    if _broken or device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    return int(torch.cuda.current_stream(device).cuda_stream)


def new_table(device: torch.device) -> Tensor:
    """A table that is not filled."""
    return torch.empty(NUMBERS, dtype=torch.int64, device=device)


def in_a_pool(table: Tensor) -> bool:
    """Whether its memory is of a pool of the user's or of torch.compile's, from which nothing may be kept."""
    if not table.is_cuda:
        return False
    address = table.data_ptr()
    try:
        segments = torch.cuda.memory_snapshot()
    except RuntimeError:  # another allocator, which has none
        return False
    for segment in segments:
        if 0 <= address - segment["address"] < segment["total_size"]:
            return tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0)
    return False


class Recorded:
    """One layer on one stream."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.lock, self.met = device, threading.Lock(), False
        self.table = new_table(device)
        self.graphs: dict[int, Graph] = {}

    def run(self, steps: Steps, tensors: tuple[Tensor | None, ...], stream: int) -> None:
        """Run the steps; the first time plainly, for then kernels are compiled and loaded."""
        steps.fill(self.table, tensors)
        if not self.met:
            steps.launch(self.table, steps.count)
            lstm_advance_kernel[(1,)](self.table, steps.count)
            self.met = True
            return
        left = steps.count
        for size in sizes(steps.count):
            graph = self.graphs.get(size) or self.record(steps, size)
            if graph is None:
                return steps.launch(self.table, left)
            graph.replay(stream)
            left -= size

    def record(self, steps: Steps, size: int) -> "Graph | None":
        """A graph of so many steps; None if that cannot be, which is not tried again in this process."""
        global _broken
        if _broken:
            return None
        try:
            with _recording:
                graph = Graph(steps, size, self.table)
        except (RuntimeError, OSError, AttributeError) as error:
            _broken = True
            # Launched plainly, whatever is wrong with the launches themselves will show.
            said = f"lstm_fused launches step by step, which is slower, for no graph can be: {error}"
            warnings.warn(said, RuntimeWarning, stacklevel=2)
            return None
        self.graphs[size] = graph
        return graph


def sizes(count: int) -> Iterator[int]:
    """The graphs' sizes that so many steps come in."""
    size = LONGEST
    while count:
        while size > count:
            size //= 2
        yield size
        count -= size


class Graph:
    """Some steps and the table's advance by so many, recorded and ready to run."""

    def __init__(self, steps: Steps, size: int, table: Tensor) -> None:
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        with relaxed():
            stream = own_stream(table.device)
            with torch.cuda.stream(torch.cuda.ExternalStream(stream, device=table.device)):
                runtime("StreamBeginCapture", ctypes.c_void_p(stream), ctypes.c_int(RELAXED))
                try:
                    steps.launch(table, size)
                    lstm_advance_kernel[(1,)](table, size)
                finally:
                    runtime("StreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
            try:
                flags = ctypes.c_ulonglong(0)
                runtime("GraphInstantiateWithFlags", ctypes.byref(executable), graph, flags)
            finally:
                runtime("GraphDestroy", graph)
        self.executable = executable
        weakref.finalize(self, destroy, executable).atexit = False

    def replay(self, stream: int) -> None:
        """Run them on a stream."""
        runtime("GraphLaunch", self.executable, ctypes.c_void_p(stream))


def destroy(executable: ctypes.c_void_p) -> None:
    """Give a graph back, when it has run."""
    with relaxed():
        runtime("GraphExecDestroy", executable)


@contextmanager
def relaxed() -> Iterator[None]:
    """What this thread does neither fails nor breaks anything because another thread is capturing."""
    mode = ctypes.c_int(RELAXED)
    runtime("ThreadExchangeStreamCaptureMode", ctypes.byref(mode))  # and the mode is what it was before
    try:
        yield
    finally:
        runtime("ThreadExchangeStreamCaptureMode", ctypes.byref(mode))


@cache
def own_stream(device: torch.device) -> int:
    """A stream to record on, where nothing ever runs; PyTorch's streams come from a pool that all share."""
    stream = ctypes.c_void_p()
    runtime("StreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(NON_BLOCKING))
    return int(stream.value or 0)


@cache
def library() -> tuple[ctypes.CDLL, str]:
    """PyTorch's own CUDA or HIP runtime, found among what it has loaded, and what its names begin with."""
    return ctypes.CDLL(torch._C.__file__), "cuda" if torch.version.hip is None else "hip"


def runtime(name: str, *arguments: Any) -> None:
    """Call a function of it.

    Raises:
        RuntimeError: it failed.
    """
    loaded, prefix = library()
    code = loaded[prefix + name](*arguments)
    if code != 0:
        loaded[prefix + "GetLastError"]()  # which PyTorch would take for its own
        raise RuntimeError(f"{prefix}{name}: error {code}")


_recorded: OrderedDict[Hashable, Recorded] = OrderedDict()
_lock = threading.Lock()
_recording = threading.Lock()  # of which there is one stream a device
_broken = False
