"""Stands in for CUDA's streams on a CPU, and finds what crosses them unordered or without being kept.

PyTorch's operators run at once, but each is noted on the stream that is current then. A vector clock for each
stream tells what a stream has waited for.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from lstm_fused.kernels import runtime
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lstm_fused.backends import streams
from lstm_fused.layers import lstm

CPU = torch.device("cpu")


class Unordered(Exception):
    """A stream reads what another one stored, and has not waited for it."""


class NotKept(Exception):
    """A stream reads memory of another one, which may be freed and used again meanwhile."""


class Stream:
    """A stream; equal to itself alone."""

    made = 0

    def __init__(self, device=CPU, priority=0):
        Stream.made += 1
        self.device, self.priority, self.cuda_stream = device, priority, Stream.made
        self.clock = {self: 0}

    def tick(self):
        self.clock[self] += 1

    def has_waited_for(self, stream, time):
        return self.clock.get(stream, 0) >= time

    def wait_stream(self, other):
        for stream, time in other.clock.items():
            self.clock[stream] = max(self.clock.get(stream, 0), time)


class Watch(TorchDispatchMode):
    """Notes what each stream reads and stores; memory that is first seen is of the first stream."""

    def __init__(self):
        super().__init__()
        self.main = self.current = Stream()
        self.owner, self.stored, self.kept, self.alive = {}, {}, {}, []
        self.nodes = {}  # of autograd, with their streams
        self.ran_on = []  # the streams of the layer's passes, in order

    def of(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.owner:
            self.alive.append(storage)
            self.owner[storage._cdata], self.kept[storage._cdata] = self.current, set()
        return storage._cdata

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        stream, taken = self.current, tensors((args, kwargs))
        stream.tick()
        for tensor in taken:
            at = self.of(tensor)
            writer, time = self.stored.get(at, (self.main, 0))
            if not stream.has_waited_for(writer, time):
                raise Unordered(f"{function} reads what another stream stored")
            if stream not in (self.owner[at], *self.kept[at]):
                raise NotKept(f"{function} reads memory of another stream")
        found = function(*args, **(kwargs or {}))
        seen = {self.of(tensor) for tensor in taken}
        for tensor in tensors(found):
            if (at := self.of(tensor)) not in seen:  # a view stores nothing
                self.stored[at] = stream, stream.clock[stream]
        if function.namespace == "lstm_fused" and not function.name().endswith("_products"):
            self.ran_on.append(stream)
        return found

    def record_stream(self, tensor, stream):
        self.kept[self.of(tensor)].add(stream)

    def give(self, stream, results):
        """Let autograd run the nodes that these results come from, and that have no stream yet, on this one.

        As PyTorch does, it lets a stream wait for those that a gradient comes from, and keeps the gradient.
        """
        nodes = [tensor.grad_fn for tensor in tensors(results)]
        while nodes:
            node = nodes.pop()
            if node is None or node in self.nodes or node.name().endswith("AccumulateGrad"):
                continue
            self.nodes[node] = stream
            nodes += [before for before, _ in node.next_functions]
            node.register_prehook(lambda gradients: self.go_to(stream, gradients))
            node.register_hook(lambda gradients, _: self.go_to(self.main, gradients))

    def go_to(self, stream, gradients):
        stream.wait_stream(self.current)
        for gradient in tensors(gradients):
            self.record_stream(gradient, stream)
        self.current = stream


def tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, noting: bool = True):
    """Streams of a CPU, for calls that `lstm_fused.backends.streams` makes side by side.

    Without ``noting`` no operator is noted: no mode is there that would make the layer run in turn.
    """
    watch, run_layer = Watch(), lstm.run_layer

    @contextmanager
    def stream(new):
        before, watch.current = watch.current, new
        try:
            yield
        finally:
            watch.current = before

    def run(*arguments):
        watch.give(watch.main, arguments)
        results = run_layer(*arguments)
        watch.give(watch.current, results)
        return results

    with monkeypatch.context() as patch, watch if noting else nullcontext():
        patch.setattr(streams, "DEVICE", "cpu")
        patch.setattr(streams, "_partners", {})
        patch.setattr(torch.cuda, "current_stream", lambda device=None: watch.current)
        patch.setattr(torch.cuda, "stream", stream)
        patch.setattr(torch.cuda, "Stream", None)  # from PyTorch's pool, where users have theirs from
        patch.setattr(runtime, "new_stream", Stream)
        patch.setattr(
            torch.Tensor, "record_stream", lambda tensor, stream: watch.record_stream(tensor, stream)
        )
        if noting:
            patch.setattr(lstm, "run_layer", run)
        yield watch
