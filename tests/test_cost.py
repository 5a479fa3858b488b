"""The cost of a call: operators that run and bytes that are kept."""

import weakref

import pytest
import torch
from harness import ENGINES_HERE, pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_fused import LSTM
from lstm_fused.autograd.operators import gradients_op

ALL = [engine.name for engine in ENGINES_HERE]
each_engine = pytest.mark.parametrize("engine", ALL)


class Count(TorchDispatchMode):
    """Counts our operators, other operators, and the bytes that ours return."""

    def __init__(self):
        super().__init__()
        self.ours, self.others, self.bytes = [], 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.namespace == "lstm_fused":
            self.ours.append(function._schema.name.rpartition("_")[2])
            self.bytes += sum(t.nbytes for t in result)
        else:
            self.others += 1
        return result


def backward_of(engine):
    """The one of the engine's operators that a plain layer's backward pass calls."""
    return "gradients" if engine in gradients_op else "backward"


def counted(call):
    with Count() as count:
        call()
    return count


@each_engine
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_saved(engine, mode):
    T, B, H = 50, 8, 32
    module, x = LSTM(16, H, engine=engine), torch.randn(T, B, 16)
    outputs = (T * B * H + 2 * B * H) * 4
    with mode():
        assert counted(lambda: module(x)).bytes == outputs
    assert counted(lambda: module(x)).bytes == outputs + 20 * T * B * H
    module.requires_grad_(False)
    assert counted(lambda: module(x)).bytes == outputs


@each_engine
def test_eval_mode_has_the_gradients_of_training_mode(engine):
    torch.manual_seed(0)
    module, x = LSTM(5, 7, 2, bidirectional=True, engine=engine), torch.randn(4, 3, 5)
    found = []
    for mode in (True, False):
        y, (h, c) = module.train(mode)(x)
        found.append(torch.autograd.grad(y.sum() + h.sin().sum() + c.sum(), list(module.parameters())))
    assert all(map(torch.equal, *found))


@each_engine
def test_lengths_and_packing_run_each_layer_and_direction_once(engine):
    module = LSTM(5, 7, 2, bidirectional=True, engine=engine)
    sequences = [torch.randn(n, 5) for n in (2, 9, 1, 9, 4)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    padded, lengths = torch.nn.utils.rnn.pad_sequence(sequences), torch.tensor([2, 9, 1, 9, 4])
    for call in (lambda: module(packed)[0].data, lambda: module(padded, lengths=lengths)[0]):
        assert (
            counted(lambda c=call: c().sum().backward()).ours == ["forward"] * 4 + [backward_of(engine)] * 4
        )


@each_engine
def test_second_derivatives_cost_nothing_when_not_asked_for(engine):
    """A backward pass is one operator and a few others, independent of the length of the sequence."""
    module = LSTM(5, 7, engine=engine)
    for T in (3, 300):
        y, _ = module(torch.randn(T, 2, 5))
        count = counted(lambda y=y: y.sum().backward())
        assert count.ours == [backward_of(engine)] and count.others < 40


@each_engine
def test_initial_states_cost_few_operators_more(engine):
    """Their gradients are views, or with several layers a stack of all, without zeros to add to."""
    for layers in (1, 3):
        module = LSTM(5, 7, layers, engine=engine)
        hx = [torch.randn(layers, 3, 7, requires_grad=True) for _ in range(2)]

        def count(*states, module=module, hx=hx):
            sources, y = [*module.parameters(), *states], module(torch.randn(4, 3, 5), hx)[0]
            return counted(lambda: torch.autograd.grad(y, sources, torch.ones_like(y))).others

        assert count(*hx) - count() == 2


@each_engine
def test_hooks_see_all_saved_tensors(engine):
    """Nothing else keeps a tensor that a hook such as torch.autograd.graph.save_on_cpu has moved."""
    module, x = LSTM(5, 7, engine=engine), torch.randn(4, 3, 5)
    watched = weakref.ref(x)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t):
        y, _ = module(x)
    del x
    assert watched() is None
    y.sum().backward()
