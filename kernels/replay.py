"""CUDA graphs for the step kernel. On a GPU nothing in this file has ever run: it was written without one.

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
# What is known of a call: its graph; None, met once; False, met twice, but it could not be captured.
_graphs: OrderedDict[Hashable, torch.cuda.CUDAGraph | bool | None] = OrderedDict()


def replay(launch: Callable[[], None], *arguments: Tensor | Hashable) -> None:
    """Do what ``launch`` does, from a graph if it has done so before with these arguments."""
    if not may_capture(*arguments):
        return launch()
    key = tuple(map(identity, arguments))
    # Taken out and put back at the end, the latest; another thread may be at it too.
    graph = _graphs.pop(key, "new")
    if graph is None:
        graph = capture(launch)
    if graph in ("new", False):
        launch()
    else:
        graph.replay()
    _graphs[key] = None if graph == "new" else graph
    if len(_graphs) > KEPT:
        _graphs.popitem(last=False)


def may_capture(*arguments: Tensor | Hashable) -> bool:
    """Whether these launches are on a GPU, and no graph of the user's is being captured there."""
    on_gpu = any(isinstance(argument, Tensor) and argument.is_cuda for argument in arguments)
    return on_gpu and not torch.cuda.is_current_stream_capturing()


def identity(argument: Tensor | Hashable) -> Hashable:
    """What a launch takes from an argument."""
    if isinstance(argument, Tensor):
        return argument.device, argument.data_ptr(), argument.dtype, tuple(argument.shape)
    return argument


def capture(launch: Callable[[], None]) -> torch.cuda.CUDAGraph | bool:
    """Record the launches on a stream of their own, where nothing runs yet; False if that cannot be."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                launch()
            finally:
                graph.capture_end()
    except RuntimeError:  # launched plainly, whatever is wrong with the launches themselves will show
        return False
    return graph
