"""Both directions of a layer on streams of their own: what waits for what, and what is kept for whom."""

import threading

import pytest
import torch
from fake_streams import CPU, NotKept, Stream, Unordered, watched

from lstm_fused import LSTM
from lstm_fused.autograd import function
from lstm_fused.backends import streams

OPTIONS = {
    "plain": {},
    "variants": {"recurrent_dropout": 0.3, "zoneout_h": 0.2, "zoneout_c": 0.1},
    "coupled": {"coupled": True},
    "layer_norm_projection": {"layer_norm": True, "proj_size": 2},
}


def problem(**options):
    # Not the CPU's engine: its plain layers have an autograd Function of their own.
    module = LSTM(3, 5, 2, bidirectional=True, dropout=0.2, engine="reference", **options)
    P = module.proj_size or 5
    hx = torch.randn(4, 2, P, requires_grad=True), torch.randn(4, 2, 5, requires_grad=True)
    return module, torch.randn(4, 2, 3, requires_grad=True), torch.tensor([4, 2]), hx


def outcome(module, x, lengths, hx):
    """Outputs and all gradients, with the same masks each time."""
    torch.manual_seed(5)
    y, (h_n, c_n) = module(x, hx, lengths=lengths)
    leaves = [x, *hx, *module.parameters()]
    return y, h_n, c_n, *torch.autograd.grad(y.cos().sum() + h_n.sum() + c_n.sum(), leaves)


@pytest.fixture
def pays(monkeypatch):
    monkeypatch.setattr(streams, "pay", lambda *_: True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_it_gives_what_one_after_the_other_gives(options, monkeypatch):
    given = problem(**options)
    wanted = outcome(*given)
    monkeypatch.setattr(streams, "pay", lambda *_: True)
    with watched(monkeypatch) as watch:
        found = outcome(*given)
    assert all(map(torch.equal, found, wanted))
    (there,) = set(watch.ran_on) - {watch.main}
    forward, backward = [there, watch.main], [watch.main, there]
    passes = watch.ran_on[:6]  # of two layers, and of the last one going back
    assert passes == forward * 2 + backward


@pytest.mark.parametrize("missing", ["fork", "join"])
def test_a_stream_that_does_not_wait_is_found(missing, monkeypatch, pays):
    module, x, lengths, hx = problem()
    plain, calls = Stream.wait_stream, []

    def wait_stream(self, other):
        calls.append(self)
        if len(calls) % 2 != (missing == "fork"):
            plain(self, other)

    with watched(monkeypatch):
        monkeypatch.setattr(Stream, "wait_stream", wait_stream)
        with pytest.raises(Unordered):
            module(x * 2, hx, lengths=lengths)


@pytest.mark.parametrize("left_out", ["there", "here"])
def test_memory_that_is_not_kept_is_found(left_out, monkeypatch, pays):
    module, x, lengths, hx = problem()
    with watched(monkeypatch) as watch:

        def record_stream(tensor, stream):
            if (stream is watch.main) != (left_out == "here"):
                watch.record_stream(tensor, stream)

        monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)
        with pytest.raises(NotKept):
            module(x, hx, lengths=lengths)


def test_the_backward_pass_is_planned_as_the_forward_pass_was(monkeypatch):
    module, x, lengths, hx = problem()
    seen = []
    plain = function.LSTMBackwardFunction.gradients

    def gradients(*arguments):
        seen.append(streams.STATE.launches)
        return plain(*arguments)

    monkeypatch.setattr(function.LSTMBackwardFunction, "gradients", staticmethod(gradients))
    with watched(monkeypatch):
        for pays, launches in ((True, 2), (False, 1)):
            monkeypatch.setattr(streams, "pay", lambda *_, pays=pays: pays)
            outcome(module, x, lengths, hx)
            assert seen == [launches] * 4 and streams.STATE.launches == 1
            seen.clear()


def test_gradients_are_added_up_on_the_current_stream(monkeypatch, pays):
    """PyTorch warns of a parameter whose node is of another stream than the one its gradient comes from."""
    module, x, lengths, hx = problem()
    with watched(monkeypatch) as watch:
        nodes = [module(x, hx, lengths=lengths)[0].grad_fn]
        met, before_leaves = set(), set()
        while nodes:
            node = nodes.pop()
            for after, _ in node.next_functions:
                if after is not None and after not in met:
                    met.add(after)
                    nodes.append(after)
                if after is not None and after.name().endswith("AccumulateGrad"):
                    before_leaves.add(watch.nodes[node])
    assert before_leaves == {watch.main}


def test_what_fails_leaves_no_stream_behind(monkeypatch, pays):
    with watched(monkeypatch) as watch:
        x = torch.zeros(3)
        for failing in (1, 2):

            def fails(n, tensor, failing=failing):
                if n == failing:
                    raise ValueError("no")
                return tensor + n

            with pytest.raises(ValueError, match="no"):
                streams.side_by_side(CPU, fails, (1, x), (2, x))
            there = streams.partner(watch.main)
            assert watch.main.has_waited_for(there, there.clock[there])
            assert watch.current is watch.main and streams.STATE.launches == 1


def test_streams_have_partners_that_no_user_has(monkeypatch):
    with watched(monkeypatch) as watch:
        other = Stream(CPU, priority=-1)
        partner = streams.partner(other)
        assert partner is streams.partner(other) and partner.priority == -1
        assert len({watch.main, streams.partner(watch.main), other, partner}) == 4


def test_a_backward_pass_may_follow_where_a_tensor_needs_a_gradient():
    module, x, lengths, hx = problem(layer_norm=True)
    module.requires_grad_(False)
    without = (x.detach(), tuple(module.parameters()), None, lengths, True)
    assert not streams.needs_gradient(without)
    for given in (x, (x.detach(), hx), tuple(problem()[0].parameters())):
        assert streams.needs_gradient((without, (given, *without)))


def test_each_thread_shares_for_itself():
    seen = []
    with streams.sharing(2):
        thread = threading.Thread(target=lambda: seen.append(streams.STATE.launches))
        thread.start()
        thread.join()
        assert streams.STATE.launches == 2
    assert seen == [1] and streams.STATE.launches == 1


def test_nothing_changes_what_has_no_tensors():
    value = (None, 1.5, (streams.PLAIN, "a"))
    assert streams.each(torch.neg, value) is value
    x = torch.ones(2)
    found = streams.each(torch.neg, (streams.Variant(gain_hh=x), (x, None)))
    assert isinstance(found[0], streams.Variant) and found[1][0].sum() == found[0].gain_hh.sum() == -2
