"""CUDA graphs for the step kernels, one for all calls of a layer, whatever T and the tensors' addresses.

A graph is a list of launches with their arguments. A step kernel has the same arguments in every call,
because it reads addresses and times from a table on the device, which each call fills by one small launch.
Updating the arguments of a graph takes the host about a microsecond a launch, a plain launch ten; the table
costs the device one trip to L2, most of which overlaps with the step before.

Each stream has tables and graphs of its own, so stream order separates two calls; a lock separates two
threads on one stream. A graph is recorded on a private stream and through the CUDA runtime itself, so that
PyTorch's allocator and generators never see a capture, even one that fails.
"""

import ctypes
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from lstm_fused.kernels import runtime
from lstm_fused.kernels.table import ADDRESSES, NUMBERS, lstm_advance_kernel, lstm_table_kernel
from torch import Tensor

KEPT = 64  # layers and streams whose graphs are kept
LONGEST = 64  # steps of the longest graph; the others have half of that, a quarter and so on


class Launch(NamedTuple):
    """A launch of a step, without the table and the number of the step."""

    kernel: Any
    grid: tuple[int, ...]
    options: tuple[tuple[str, Hashable], ...]


class Steps(NamedTuple):
    """``count`` steps in one order of time."""

    launches: tuple[Launch, ...]  # of each step
    count: int
    T: int
    first: int  # its t
    stride: int  # 1 or -1

    def fill(self, table: Tensor, tensors: tuple[Tensor | None, ...]) -> None:
        """Fill the table that the launches read."""
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        addresses += [0] * (ADDRESSES - len(addresses))
        lstm_table_kernel[(1,)](table, self.T, self.first, self.stride, *addresses)

    def launch(self, table: Tensor, count: int) -> None:
        """Launch ``count`` steps."""
        for node in range(count):
            for kernel, grid, options in self.launches:
                kernel[grid](table, node, **dict(options))


def run(steps: Steps, tensors: tuple[Tensor | None, ...], device: torch.device) -> None:
    """Run the steps; from graphs if they have run on this stream before."""
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
    """The current stream; None if no graph can run: no GPU, a capture of the user's, an earlier failure."""
    if _broken or device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    return int(torch.cuda.current_stream(device).cuda_stream)


def new_table(device: torch.device) -> Tensor:
    """An uninitialized table."""
    return torch.empty(NUMBERS, dtype=torch.int64, device=device)


def in_a_pool(table: Tensor) -> bool:
    """Whether a table is in a memory pool of the user's or of torch.compile's, where nothing may be kept."""
    if not table.is_cuda:
        return False
    address = table.data_ptr()
    try:
        segments = torch.cuda.memory_snapshot()
    except RuntimeError:  # an allocator without snapshots
        return False
    for segment in segments:
        if 0 <= address - segment["address"] < segment["total_size"]:
            return tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0)
    return False


class Recorded:
    """The table and the graphs of one layer on one stream."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.lock, self.warm = device, threading.Lock(), False
        self.table = new_table(device)
        self.graphs: dict[int, Graph] = {}

    def run(self, steps: Steps, tensors: tuple[Tensor | None, ...], stream: int) -> None:
        """Run the steps; the first time by plain launches, which compile and load the kernels."""
        steps.fill(self.table, tensors)
        if not self.warm:
            steps.launch(self.table, steps.count)
            lstm_advance_kernel[(1,)](self.table, steps.count)
            self.warm = True
            return
        left = steps.count
        for size in sizes(steps.count):
            graph = self.graphs.get(size) or self.record(steps, size)
            if graph is None:
                return steps.launch(self.table, left)
            graph.replay(stream)
            left -= size

    def record(self, steps: Steps, size: int) -> "Graph | None":
        """Record a graph of ``size`` steps; None on a failure, after which this process records none."""
        global _broken
        if _broken:
            return None
        try:
            with _recording:
                graph = Graph(steps, size, self.table)
        except (RuntimeError, OSError, AttributeError) as error:
            _broken = True
            # If the launches themselves are wrong, plain launches raise the error.
            said = f"lstm_fused launches step by step, which is slower, for no graph can be: {error}"
            warnings.warn(said, RuntimeWarning, stacklevel=2)
            return None
        self.graphs[size] = graph
        return graph


def sizes(count: int) -> Iterator[int]:
    """The sizes of the graphs that make up ``count`` steps."""
    size = LONGEST
    while count:
        while size > count:
            size //= 2
        yield size
        count -= size


class Graph:
    """A recorded graph of ``size`` steps, which then advances the table by as many."""

    def __init__(self, steps: Steps, size: int, table: Tensor) -> None:
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        own = own_stream(table.device)
        stream = ctypes.c_void_p(own.cuda_stream)
        with runtime.relaxed():
            with torch.cuda.stream(own):
                runtime.call("StreamBeginCapture", stream, ctypes.c_int(runtime.RELAXED))
                try:
                    steps.launch(table, size)
                    lstm_advance_kernel[(1,)](table, size)
                finally:
                    runtime.call("StreamEndCapture", stream, ctypes.byref(graph))
            try:
                flags = ctypes.c_ulonglong(0)
                runtime.call("GraphInstantiateWithFlags", ctypes.byref(executable), graph, flags)
            finally:
                runtime.call("GraphDestroy", graph)
        self.executable = executable
        weakref.finalize(self, destroy, executable).atexit = False

    def replay(self, stream: int) -> None:
        """Launch the graph on a stream."""
        runtime.call("GraphLaunch", self.executable, ctypes.c_void_p(stream))


def destroy(executable: ctypes.c_void_p) -> None:
    """Destroy a graph; one that runs is destroyed when it is done."""
    with runtime.relaxed():
        runtime.call("GraphExecDestroy", executable)


@cache
def own_stream(device: torch.device) -> torch.cuda.ExternalStream:
    """A stream to record on, where nothing ever runs."""
    return runtime.new_stream(device)


_recorded: OrderedDict[Hashable, Recorded] = OrderedDict()
_lock = threading.Lock()
_recording = threading.Lock()  # because a device has one stream to record on
_broken = False
