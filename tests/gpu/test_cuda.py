"""What only a GPU has: graphs, streams, launches that must fit, tensors past 2^31 numbers."""

from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import NAMES, Case, make_tensors
from kernels_here import running, takes
from lstm_fused.kernels import choose, cooperative, replay, resident
from lstm_fused.kernels.plan import EXCHANGES, GLUON

from lstm_fused import LSTM
from lstm_fused.autograd.operators import backward_op, forward_op
from lstm_fused.backends import streams


def forward(engine, t, save=True):
    return forward_op[engine](*(t[n] for n in NAMES), None, False, save)


def backward(engine, t, out):
    return backward_op[engine](*out, t["c0"], t["weight_hh"], t["peephole"], t["weight_hr"], None, False)


@pytest.fixture
def recorded(monkeypatch):
    """The sizes of the graphs that were recorded, from none on."""
    found = []
    plain = replay.Graph.__init__

    def record(self, steps, size, table):
        plain(self, steps, size, table)
        found.append(size)

    monkeypatch.setattr(replay.Graph, "__init__", record)
    monkeypatch.setattr(replay, "_recorded", OrderedDict())
    monkeypatch.setattr(replay, "_broken", False)
    return found


def check(t, rtol=1e-10, atol=1e-12):
    """Both directions."""
    exact = forward("reference", t)
    torch.testing.assert_close(tuple(forward("triton", t)), tuple(exact), rtol=rtol, atol=atol)
    wanted = tuple(backward("reference", t, exact))
    torch.testing.assert_close(tuple(backward("triton", t, exact)), wanted, rtol=rtol, atol=atol)


def errors_of_sums(engine, H, device):
    """The errors of W_hh h and of da W_hh in float32, given the factors."""
    t = make_tensors(Case("sums", T=1, B=5, I=1, H=H, fine=True), torch.float32, device=device)
    dxw, d_h0, *_ = backward(engine, t, forward(engine, t))
    exact = dxw[0].double() @ t["weight_hh"].double()
    # With zeros elsewhere the gates f are 1/2, i is 1, and tanh of numbers so small is the identity.
    h0, weights, tiny = t["h0"], t["weight_hh"].view(4, H, H)[2].clone(), 2.0**-20
    t = {name: None if tensor is None else torch.zeros_like(tensor) for name, tensor in t.items()}
    t["weight_hh"].view(4, H, H)[2] = weights * tiny
    t["bias_ih"][:H] = 40
    sums = forward(engine, t | {"h0": h0})[2].double() / tiny
    return (sums - h0.double() @ weights.double().T).norm().item(), (d_h0 - exact).norm().item()


@pytest.mark.parametrize("H", [768, 1024])
@pytest.mark.parametrize("kernel", [name for name in EXCHANGES if name not in GLUON])
def test_long_sums_in_float32_are_as_exact_as_the_references(kernel, H, monkeypatch):
    """In one chain of multiply-adds they would not be."""
    if not takes(kernel, Case("sums", B=5, H=H), torch.float32):
        pytest.skip("a size of other kernels")
    with running(kernel, monkeypatch):
        found = errors_of_sums("triton", H, "cuda")
    for ours, theirs in zip(found, errors_of_sums("reference", H, "cpu"), strict=True):
        assert ours <= 2 * theirs


@pytest.mark.parametrize("P", [0, 4])
def test_one_graph_serves_every_address_and_number_of_steps(P, monkeypatch, recorded):
    kept = []  # so that every call finds its tensors elsewhere
    with running("step", monkeypatch):
        for T in (5, 5, 5, 2, 70, 1, 200):
            t = make_tensors(Case("graph", T=T, B=3, I=4, H=9, P=P), torch.float64)
            t["x"].mul_(-0.5)
            t["h0"].fill_(len(kept))
            check(t)
            kept.append(t)
    assert Counter(recorded) == dict.fromkeys((1, 2, 4, 8, 64), 2), "each once in each direction"


def test_the_same_bits_launched_and_from_graphs(monkeypatch, recorded):
    t = make_tensors(Case("bits", T=150, B=20, I=4, H=96), torch.bfloat16)
    with running("step", monkeypatch):
        first = forward("triton", t)
        gradients = backward("triton", t, first)
        for _ in range(20):
            again = forward("triton", t)
            assert all(map(torch.equal, again, first))
            assert all(map(torch.equal, backward("triton", t, again), gradients))
    assert recorded


def test_two_streams_at_once(monkeypatch, recorded):
    streams = [torch.cuda.Stream() for _ in range(2)]
    tensors = [make_tensors(Case("streams", T=100, B=3, I=4, H=9), torch.float64) for _ in streams]
    tensors[1]["x"].neg_()
    with running("step", monkeypatch):
        wanted = [forward("triton", t) for t in tensors]
        found = []
        torch.cuda.synchronize()
        for turn in range(12):
            with torch.cuda.stream(streams[turn % 2]):
                found.append(forward("triton", tensors[turn % 2]))
        torch.cuda.synchronize()
    for turn, out in enumerate(found):
        assert all(map(torch.equal, out, wanted[turn % 2])), turn
    assert len({key[2] for key in replay._recorded}) == 3, "graphs of each stream"


def test_two_threads_on_one_stream(monkeypatch, recorded):
    tensors = [make_tensors(Case("threads", T=100, B=3, I=4, H=9), torch.float64) for _ in range(2)]
    tensors[1]["x"].neg_()
    with running("step", monkeypatch):
        wanted = [forward("triton", t) for t in tensors]
        forward("triton", tensors[0])
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda turn: forward("triton", tensors[turn % 2]), range(40)))
        torch.cuda.synchronize()
    for turn, out in enumerate(found):
        assert all(map(torch.equal, out, wanted[turn % 2])), turn


def test_a_capture_that_fails_leaves_nothing_behind(monkeypatch, recorded):
    t = make_tensors(Case("failing", T=5, B=3, I=4, H=9), torch.float64)
    plain = replay.Steps.launch
    captures = []

    def launch(self, table, count):
        if torch.cuda.is_current_stream_capturing():
            captures.append(count)
            torch.cuda.current_stream().synchronize()  # not allowed there
        plain(self, table, count)

    monkeypatch.setattr(replay.Steps, "launch", launch)
    with running("step", monkeypatch):
        check(t)
        with pytest.warns(RuntimeWarning, match="no graph can be"):
            check(t)
        check(t)
    assert len(captures) == 1 and not recorded
    x = torch.ones(1000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        doubled = x * 2
    graph.replay()
    assert doubled.sum().item() == 2000


@pytest.mark.parametrize("sizes", [{"T": 0, "B": 3}, {"T": 4, "B": 0}], ids=["no_steps", "empty_batch"])
def test_empty_sequences_between_others(sizes, monkeypatch, recorded):
    with running("step", monkeypatch):
        for _ in range(3):
            for case in (Case("some", T=4, B=3, I=4, H=9), Case("empty", I=4, H=9, **sizes)):
                check(make_tensors(case, torch.float64))
    assert recorded


def test_streams_that_no_user_can_have():
    here = torch.cuda.current_stream()
    own = {replay.own_stream(here.device).cuda_stream, streams.partner(here).cuda_stream}
    pool = {torch.cuda.Stream(priority=p).cuda_stream for p in (0, -1) for _ in range(64)}
    assert len(own) == 2 and not own & {0, here.cuda_stream, *pool}


@pytest.mark.parametrize("kernel", choose.KERNELS)
def test_within_a_graph_of_the_user(kernel, monkeypatch):
    # A cooperative launch cannot be captured by every driver; then it must say so, not give wrong numbers.
    t = make_tensors(Case("captured", T=4, B=3, I=4, H=9), torch.float16)
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
    t = make_tensors(Case("stream", T=4, B=3, I=4, H=9), torch.float16)
    stream = torch.cuda.Stream()
    with running(kernel, monkeypatch):
        wanted = forward("triton", t)[:3]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = forward("triton", t)[:3]
        torch.cuda.synchronize()
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("kernel", choose.KERNELS)
def test_both_directions_at_the_same_time(kernel, monkeypatch):
    module = LSTM(8, 64, 2, bidirectional=True, device="cuda", dtype=torch.float16, engine="triton")
    x = torch.randn(96, 16, 8, device="cuda", dtype=torch.float16, requires_grad=True)
    used = []
    plain = streams.side_by_side
    monkeypatch.setattr(streams, "LEAST_STEPS", 64)
    monkeypatch.setattr(streams, "side_by_side", lambda *given: used.append(1) or plain(*given))

    def outcome():
        y, states = module(x)
        loss = y.float().square().sum() + sum(state.float().sum() for state in states)
        return y.detach(), *torch.autograd.grad(loss, [x, *module.parameters()])

    with running(kernel, monkeypatch):
        with streams.sharing(2):  # one after the other, by the same plans
            wanted = outcome()
        for turn in range(20):
            found = outcome()
            # What was freed too early would be written over.
            litter = [torch.full_like(tensor, torch.nan) for tensor in found for _ in range(3)]
            assert all(map(torch.equal, found, wanted)), turn
            del litter
        assert len(used) == 2 * 20


def test_both_directions_within_a_graph_of_the_user(monkeypatch):
    monkeypatch.setattr(streams, "LEAST_STEPS", 64)
    module = LSTM(8, 64, bidirectional=True, device="cuda", dtype=torch.float16, engine="triton")
    x = torch.randn(96, 16, 8, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        wanted = module(x)[0].clone()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            found = module(x)[0]
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, wanted)


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


def test_the_kernel_named_is_the_one_launched(monkeypatch):
    launched = []

    class Spy:
        def __init__(self, module, name):
            self.name = name
            self.kernel = getattr(module, name)

        def __getitem__(self, grid):
            launched.append(self.name)
            return self.kernel[grid]

    for module in (cooperative, resident):
        for name in [name for name in dir(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Spy(module, name))
    t = make_tensors(Case("chosen", T=3, B=3, I=8, H=256), torch.float16)
    with running("cooperative", monkeypatch):
        backward("triton", t, forward("triton", t))
    assert launched == ["lstm_forward_cooperative_kernel", "lstm_backward_cooperative_kernel"]
