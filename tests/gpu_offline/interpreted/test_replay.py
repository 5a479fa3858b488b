"""The step kernels' launches, recorded and replayed by a stand-in for the CUDA runtime's graphs."""

import gc
from collections import Counter, OrderedDict
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cases import EVERY_VARIANT, Case, layer_inputs, layer_saved, make_tensors
from lstm_fused.kernels import launch, replay, steps
from lstm_fused.kernels import runtime as cuda
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lstm_fused import reference
from lstm_fused.contract import OutputGradients, Variant

CASE = Case("small", T=3, B=2, I=3, H=5, lengths=(3, 1))
CASES = (
    CASE,
    replace(CASE, name="reverse", lengths=None, reverse=True),
    replace(CASE, name="projection", P=3, lengths=None, reverse=True),
    replace(EVERY_VARIANT, name="every_variant", T=3, B=2, I=3, H=5, lengths=(3, 1)),
)
REAL_CALL, REAL_STREAM = cuda.call, replay.stream_for_graphs
RECORDING = (
    "StreamCreateWithPriority",
    "StreamBeginCapture",
    "StreamEndCapture",
    "GraphInstantiateWithFlags",
)


class ViewsAlone(TorchDispatchMode):
    """While launches are recorded PyTorch may compute nothing: a replay would not do so again."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.is_view, f"{function} while launches are recorded"
        return function(*args, **(kwargs or {}))


class Runtime:
    """The functions that are called, of which some may fail."""

    def __init__(self):
        self.called, self.graphs, self.recording = Counter(), {}, None
        self.fails, self.watch, self.destroyed = (), ViewsAlone(), []

    def __call__(self, name, *arguments):
        self.called[name] += 1
        if name == "StreamBeginCapture" and name not in self.fails:
            self.watch.__enter__()
            self.recording = []
        if name == "StreamEndCapture":
            self.watch.__exit__(None, None, None)
            launches, self.recording = self.recording, None
        if name in self.fails:
            raise RuntimeError(f"{name}: error 900")
        if name == "StreamCreateWithPriority":
            arguments[0]._obj.value = 7
        if name == "StreamEndCapture":
            arguments[1]._obj.value = id(launches)
            self.graphs[id(launches)] = launches
        if name == "GraphInstantiateWithFlags":
            arguments[0]._obj.value = arguments[1].value
        if name == "GraphLaunch":
            for launched in self.graphs[arguments[0].value]:
                run_now(*launched)
        if name == "GraphExecDestroy":
            self.destroyed.append(arguments[0].value)


def run_now(kernel, grid, arguments, options):
    with _disable_current_modes():  # the interpreter's own tensors are none of theirs
        kernel[grid](*arguments, **options)


class Kernel:
    """A kernel whose launches a graph may record."""

    def __init__(self, kernel, runtime):
        self.kernel, self.runtime, self.launches = kernel, runtime, 0

    def __getitem__(self, grid):
        def run(*arguments, **options):
            launched = self.kernel, grid, arguments, options
            if self.runtime.recording is None:
                self.launches += 1
                run_now(*launched)
            else:
                self.runtime.recording.append(launched)

        return run


@pytest.fixture(autouse=True)
def runtime(monkeypatch):
    found = Runtime()
    monkeypatch.setenv("LSTM_FUSED_KERNEL", "step")
    for module in (steps, replay):
        for name in [name for name in dir(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Kernel(getattr(module, name), found))
    monkeypatch.setattr(cuda, "call", found)
    monkeypatch.setattr(replay, "_recorded", OrderedDict())
    monkeypatch.setattr(replay, "_broken", False)
    monkeypatch.setattr(replay, "stream_for_graphs", lambda device: None if replay._broken else 0)
    monkeypatch.setattr(
        torch.cuda, "ExternalStream", lambda stream, device: SimpleNamespace(cuda_stream=stream)
    )
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    replay.own_stream.cache_clear()
    yield found
    replay.own_stream.cache_clear()


def check(case, T=3):
    """Both directions, with new numbers in new memory."""
    case = replace(case, T=T, lengths=case.lengths and tuple(min(n, T) for n in case.lengths))
    drawn = make_tensors(case, torch.float64).items()
    t = {n: v if v is None else torch.rand_like(v) - 0.5 for n, v in drawn}
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    inputs, hw = layer_inputs(t, lengths, case.reverse), None
    if case.varied:
        hw, gain, h_mask, *zoneouts = (
            torch.rand(shape, dtype=torch.float64)
            for shape in ((T, 2, 20), (20,), (2, 5), (T, 2, 5), (T, 2, 5))
        )
        inputs = inputs._replace(variant=Variant(gain, h_mask, *zoneouts, 0.7))
    out = reference.forward(inputs)
    torch.testing.assert_close(tuple(launch.forward(inputs)), tuple(out))
    saved, douts = layer_saved(inputs, out)._replace(hw=hw), OutputGradients(*out[:3])
    wanted = reference.backward(saved, douts)
    torch.testing.assert_close(tuple(launch.backward(saved, douts)), tuple(wanted))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_graph_serves_every_call(case, runtime):
    for _ in range(3):
        check(case)
    # Three steps and four of the backward pass, which hands on to h0; the first call is launched.
    assert runtime.called["GraphInstantiateWithFlags"] == 2 + 1
    assert runtime.called["GraphLaunch"] == 2 * (2 + 1)


def test_one_graph_serves_every_number_of_steps(runtime, monkeypatch):
    monkeypatch.setattr(replay, "LONGEST", 4)
    for T in (1, 11, 6, 1, 4):
        check(CASE, T)
    assert runtime.called["GraphInstantiateWithFlags"] == 2 * 3, "of 4, 2 and 1 steps in both directions"
    assert runtime.called["GraphLaunch"] == (4 + 2 + 1 + 1) + (3 + 3 + 1 + 2)


def test_the_sizes_of_graphs():
    assert list(replay.sizes(0)) == []
    assert list(replay.sizes(1025)) == [64] * 16 + [1]
    assert all(sum(replay.sizes(count)) == count for count in range(300))


def test_what_differs_in_more_than_its_tensors_has_graphs_of_its_own(runtime):
    cases = [CASE, replace(CASE, B=3, lengths=(3, 1, 0)), replace(CASE, H=6), replace(CASE, bias=False)]
    for case in (*cases, *cases):
        check(case)
    # But for the bias of which the backward pass knows nothing.
    assert len(replay._recorded) == 2 * len(cases) - 1


def test_what_is_not_aligned_has_graphs_of_its_own(runtime):
    t = torch.zeros(9, dtype=torch.float64)
    assert steps.of_tensors((t[1:], None))["ALIGNED"] is False
    assert steps.of_tensors((t[2:], None))["ALIGNED"] is True


def test_streams_do_not_share_a_table(runtime, monkeypatch):
    for stream in (1, 2, 1, 2):
        monkeypatch.setattr(replay, "stream_for_graphs", lambda device, stream=stream: stream)
        check(CASE)
    tables = {recorded.table.data_ptr() for recorded in replay._recorded.values()}
    assert len(tables) == 4, "two directions on two streams"


@pytest.mark.parametrize("failing", RECORDING)
def test_what_cannot_be_recorded_is_launched_and_recording_not_tried_again(failing, runtime):
    runtime.fails = (failing,)
    check(CASE)
    with pytest.warns(RuntimeWarning, match=f"no graph can be: {failing}: error 900"):
        check(CASE, 5)
    before = runtime.called.copy()
    check(CASE, 2)
    assert runtime.called == before and not before["GraphLaunch"]
    begun = before["StreamBeginCapture"] if failing != "StreamBeginCapture" else 0
    assert before["StreamEndCapture"] == begun, "what was begun is ended"
    assert before["GraphDestroy"] == (failing == "GraphInstantiateWithFlags"), "what was made is given back"
    exchanged = 2 if failing == RECORDING[0] else 4
    assert before["ThreadExchangeStreamCaptureMode"] == exchanged, "the thread's mode is what it was"


def test_a_capture_that_fails_between_two_replays(runtime, monkeypatch):
    monkeypatch.setattr(replay, "LONGEST", 2)
    check(CASE, 2)
    check(CASE, 2)
    runtime.fails = ("StreamBeginCapture",)
    with pytest.warns(RuntimeWarning):
        check(CASE, 5)  # two graphs of two steps, then one step
    assert runtime.called["GraphLaunch"] == 1 + 2 + 2


def test_a_launch_that_fails_while_it_is_recorded(runtime, monkeypatch):
    check(CASE)

    plain = replay.Steps.launch

    def refuse(*arguments):
        if runtime.recording is not None:
            raise RuntimeError("Triton Error [CUDA]: operation not permitted when stream is capturing")
        plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(replay.Steps, "launch", refuse)
        with pytest.warns(RuntimeWarning, match="not permitted"):
            check(CASE)
    check(CASE)
    assert not runtime.called["GraphLaunch"]


def test_without_the_runtime_of_a_gpu_nothing_is_recorded(monkeypatch, runtime):
    monkeypatch.setattr(cuda, "call", REAL_CALL)
    check(CASE)
    with pytest.warns(RuntimeWarning, match="StreamCapture"):
        check(CASE)


def test_no_more_is_kept_than_was_meant(monkeypatch, runtime):
    monkeypatch.setattr(replay, "KEPT", 2)
    for H in (2, 2, 3, 3, 2):
        check(replace(CASE, H=H))
    gc.collect()
    assert len(replay._recorded) == 2
    assert len(runtime.destroyed) == runtime.called["GraphInstantiateWithFlags"] == 2 * (2 + 1)


def test_only_launches_on_a_gpu_are_recorded():
    assert REAL_STREAM(torch.device("cpu")) is None
