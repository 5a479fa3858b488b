"""The step kernel's launches, recorded and replayed by a stand-in for CUDA graphs."""

from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from cases import Case, make_tensors
from lstm_fused.kernels import launch, replay, steps
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lstm_fused import reference

CASE = Case("small", T=3, B=2, I=3, H=5, lengths=(3, 1))
CASES = (CASE, replace(CASE, name="projection", T=2, P=3, lengths=None, reverse=True))
NAMES = ("x", "weight_ih", "weight_hh", "bias_ih", "peephole", "weight_hr", "h0", "c0")


class ViewsAlone(TorchDispatchMode):
    """While launches are recorded PyTorch may compute nothing: a replay would not do so again."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.is_view, f"{function} while launches are recorded"
        return function(*args, **(kwargs or {}))


class SameMemory(TorchDispatchMode):
    """What a turn makes is where the turn before made it, as a GPU's allocator has it in a training loop."""

    def __init__(self):
        super().__init__()
        self.made, self.next = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.is_view or not isinstance(result, torch.Tensor) or any(result is a for a in args):
            return result
        if self.next == len(self.made):
            self.made.append(result)
        self.next += 1
        return self.made[self.next - 1].copy_(result)


class Graph:
    """Launches, recorded instead of run."""

    recording, made = None, []
    refuses = False

    def __init__(self):
        self.launches, self.replays, self.watch = [], 0, ViewsAlone()
        Graph.made.append(self)

    def capture_begin(self, capture_error_mode):
        if Graph.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.watch.__enter__()
        Graph.recording = self

    def capture_end(self):
        self.watch.__exit__(None, None, None)
        Graph.recording = None

    def replay(self):
        self.replays += 1
        for launched in self.launches:
            run_now(*launched)


def run_now(kernel, grid, arguments, options):
    with _disable_current_modes():  # the interpreter's own tensors are none of theirs
        kernel[grid](*arguments, **options)


class Kernel:
    """A kernel whose launches a graph may record."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def run(*arguments, **options):
            launched = self.kernel, grid, arguments, options
            run_now(*launched) if Graph.recording is None else Graph.recording.launches.append(launched)

        return run


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", "step")
    for name in [name for name in dir(steps) if name.endswith("_kernel")]:
        monkeypatch.setattr(steps, name, Kernel(getattr(steps, name)))
    monkeypatch.setattr(replay, "_graphs", OrderedDict())
    monkeypatch.setattr(replay, "may_capture", lambda *arguments: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(Graph, "made", [])


def check_turns(case, turns):
    """Both directions, again and again, on the same memory whose numbers change."""
    t = make_tensors(case, torch.float64)
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    inputs = (*(t[n] for n in NAMES), lengths, case.reverse, True)
    rest = (t["c0"], t["weight_hh"], t["peephole"], t["weight_hr"], lengths, case.reverse)
    gradients = reference.lstm_forward(*inputs)
    memory = SameMemory()
    for turn in range(turns):
        t["x"].mul_(-0.5)
        t["h0"].fill_(turn)
        wanted = reference.lstm_forward(*inputs)
        memory.next = 0
        with memory:
            found = launch.forward(*inputs)
        torch.testing.assert_close(tuple(found), tuple(wanted))
        for ours, theirs in zip(gradients, wanted, strict=True):
            ours.copy_(theirs)
        with memory:
            found = launch.backward(*gradients, *rest)
        torch.testing.assert_close(tuple(found), tuple(reference.lstm_backward(*gradients, *rest)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_replayed_sees_the_new_numbers(case):
    check_turns(case, 4)
    assert [graph.replays for graph in Graph.made] == [3, 3], "forward and backward, from the second turn on"


def test_other_memory_is_another_call():
    tensors = [torch.zeros(1) for _ in range(2)]
    for k in (0, 1, 0, 1, 0):
        replay.replay(lambda k=k: Kernel({(): tensors[k].add_})[()](1), tensors[k])
    assert [tensor.item() for tensor in tensors] == [3, 2]
    assert [graph.replays for graph in Graph.made] == [2, 1]


def test_where_nothing_can_be_captured_it_is_launched(monkeypatch):
    monkeypatch.setattr(Graph, "refuses", True)
    check_turns(CASE, 3)
    assert Graph.made and not any(graph.replays for graph in Graph.made)


def test_no_more_is_kept_than_was_meant(monkeypatch):
    monkeypatch.setattr(replay, "KEPT", 3)
    for number in (0, 1, 2, 3, 4, 5, 4, 4):
        replay.replay(lambda: None, number)
    assert list(replay._graphs) == [(3,), (5,), (4,)] and [graph.replays for graph in Graph.made] == [2]


def test_only_launches_on_a_gpu_are_captured(monkeypatch):
    monkeypatch.undo()
    assert not replay.may_capture(torch.zeros(1), 3, None)
