"""CUDA graphs for the step kernel. Nothing in this file has ever run: it was written without a GPU.

A graph is a list of launches with their addresses. It may stand for the launches themselves whenever every
address and number is the same again, as they are in a training loop whose shapes do not change: the
memory belongs to the caller's tensors, never to the graph. The second call that looks like an earlier one
is captured, later ones are replayed.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

KEPT = 32  # graphs, and calls remembered
_graphs: OrderedDict[Hashable, torch.cuda.CUDAGraph | None] = OrderedDict()


def replay(launch: Callable[[], None], *arguments: Tensor | Hashable) -> None:
    """Do what ``launch`` does, from a graph if it has done so before with these arguments."""
    if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
        return launch()
    device = torch.cuda.current_device()
    key = (device, *(identity(a) for a in arguments))
    if key not in _graphs:
        _graphs[key] = None
        launch()
    else:
        graph = _graphs[key]
        if graph is None:
            _graphs[key] = graph = capture(launch)
        graph.replay()
    _graphs.move_to_end(key)
    if len(_graphs) > KEPT:
        _graphs.popitem(last=False)


def identity(argument: Tensor | Hashable) -> Hashable:
    """What a launch takes from an argument."""
    if isinstance(argument, Tensor):
        return argument.data_ptr(), argument.dtype, tuple(argument.shape)
    return argument


def capture(launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Record the launches on a stream of their own; nothing runs yet."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            launch()
        finally:
            graph.capture_end()
    return graph
