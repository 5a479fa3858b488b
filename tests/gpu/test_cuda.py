"""What only a GPU has: graphs, streams, launches that must fit, tensors past 2^31 numbers."""

import pytest
import torch
from cases import Case, make_tensors
from kernels_here import running
from lstm_fused.kernels import choose, replay, sequence

from lstm_fused import LSTM
from lstm_fused.ops import backward_op, forward_op

NAMES = ("x", "weight_ih", "weight_hh", "bias_ih", "peephole", "weight_hr", "h0", "c0")


def forward(engine, t, save=True):
    return forward_op[engine](*(t[n] for n in NAMES), None, False, save)


def backward(engine, t, out):
    return backward_op[engine](*out, t["c0"], t["weight_hh"], t["peephole"], None, None, False)


def test_graphs_follow_what_the_tensors_hold(monkeypatch):
    # The second call with the same memory is captured, the third replayed: each must see the new numbers.
    case = Case("graph", T=5, B=3, I=4, H=9)
    t = make_tensors(case, torch.float64)
    replay._graphs.clear()
    with running("step", monkeypatch):
        for turn in range(6):
            t["h0"].fill_(turn)
            t["x"].mul_(-0.5)
            ours, exact = forward("triton", t), forward("reference", t)
            torch.testing.assert_close(tuple(ours), tuple(exact), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(
                tuple(backward("triton", t, exact)),
                tuple(backward("reference", t, exact)),
                rtol=1e-10,
                atol=1e-12,
            )
            del ours, exact
    assert any(graph is not None for graph in replay._graphs.values()), "no call was captured"


@pytest.mark.parametrize("kernel", choose.KERNELS)
def test_within_a_graph_of_the_user(kernel, monkeypatch):
    # A cooperative launch cannot be captured by every driver; then it must say so, not give wrong numbers.
    t = make_tensors(Case("captured", T=4, B=3, I=4, H=9), torch.float32)
    with running(kernel, monkeypatch):
        wanted = tuple(v.clone() for v in forward("triton", t, save=False)[:3])
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph):
                found = forward("triton", t, save=False)[:3]
        except RuntimeError:
            assert kernel == "cooperative"
            return
        graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("kernel", choose.KERNELS)
def test_on_a_stream_of_the_user(kernel, monkeypatch):
    t = make_tensors(Case("stream", T=4, B=3, I=4, H=9), torch.float32)
    stream = torch.cuda.Stream()
    with running(kernel, monkeypatch):
        wanted = forward("triton", t)[:3]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = forward("triton", t)[:3]
        torch.cuda.synchronize()
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_batch_in_several_launches(direction, monkeypatch):
    # More rows than are on any card at once.
    t = make_tensors(Case("wide", T=3, B=1500, I=8, H=512), torch.float32)
    with running("cooperative", monkeypatch):
        layer = choose.Layer(direction, 512, 1500, torch.float32, "ieee")
        plan = choose.choose(layer, choose.card_at(torch.device("cuda", 0)), "cooperative")
        assert choose.launches(plan, layer) > 1
        exact = forward("reference", t)
        run = (lambda e: forward(e, t)) if direction == "forward" else (lambda e: backward(e, t, exact))
        torch.testing.assert_close(tuple(run("triton")), tuple(run("reference")), rtol=1e-4, atol=1e-4)


def test_a_launch_that_does_not_fit_fails_and_does_not_hang(monkeypatch):
    t = make_tensors(Case("too_wide", T=3, B=20_000, I=8, H=512), torch.float32)
    few = make_tensors(Case("few", T=3, B=3, I=8, H=512), torch.float32)
    with running("cooperative", monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(choose.Plan, "waves", lambda self, tiles: [(0, tiles)])
            with pytest.raises(RuntimeError):
                forward("triton", t)
        torch.testing.assert_close(
            tuple(forward("triton", few)), tuple(forward("reference", few)), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kernel", ["resident", "step", "cooperative"])
def test_tensors_past_two_to_the_31_numbers(kernel, monkeypatch):
    T, B, H = 1040, 4096, 128
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("takes 40 GiB")
    module = LSTM(8, H, device="cuda", dtype=torch.float16, engine="triton")
    x = torch.randn(T, B, 8, device="cuda", dtype=torch.float16)
    assert 4 * T * B * H > 2**31
    found = []
    with running(kernel, monkeypatch):
        for part in (x, x[:, -16:].contiguous()):
            part.requires_grad_()
            y = module(part)[0][:, -16:]
            found.append((y.detach(), torch.autograd.grad(y.float().sum(), part)[0][:, -16:]))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-3)


def test_sequence_kernels_are_the_ones_launched(monkeypatch):
    launched = []

    class Spy:
        def __init__(self, name):
            self.name = name
            self.kernel = getattr(sequence, name)

        def __getitem__(self, grid):
            launched.append(self.name)
            return self.kernel[grid]

    for name in [name for name in dir(sequence) if name.endswith("_kernel")]:
        monkeypatch.setattr(sequence, name, Spy(name))
    t = make_tensors(Case("chosen", T=3, B=3, I=8, H=256), torch.float16)
    backward("triton", t, forward("triton", t))
    assert launched == ["lstm_forward_cooperative_kernel", "lstm_backward_cooperative_kernel"]
