"""FlopCounterMode counts the products of an engine's operators as it counts those of the reference."""

import pytest
import torch
from cases import CASES, VARIANTS
from harness import ENGINES_HERE
from test_contract import records
from torch.utils.flop_counter import FlopCounterMode

from lstm_fused import LSTM, reference
from lstm_fused.autograd.operators import backward_op, forward_op, gradients_op, products_op
from lstm_fused.contract import Factors, flatten

T, B, I, H = 5, 3, 6, 8
SMALL = [case for case in (*CASES, *VARIANTS) if case.T * case.B * case.H < 3000]
each_engine = pytest.mark.parametrize("engine", [engine.name for engine in ENGINES_HERE])


def count(function, *arguments):
    with FlopCounterMode(display=False) as counter:
        result = function(*arguments)
    return counter.get_total_flops(), result


@each_engine
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_operators_count_what_the_reference_multiplies(engine, case):
    inputs, _, saved, douts, gradients = records(case)
    assert inputs.weight_ih is not None
    for given in (inputs, inputs._replace(x=inputs.x @ inputs.weight_ih.T, weight_ih=None)):
        expected, outputs = count(reference.forward, given)
        assert count(forward_op[engine], *flatten(given))[0] == expected
    expected, _ = count(reference.backward, saved, douts)
    assert count(backward_op[engine], *flatten(douts, saved))[0] == expected
    if engine not in products_op:
        return
    whole = Factors(
        gradients.dxw,
        None,
        inputs.x,
        inputs.weight_ih,
        outputs.y,
        inputs.h0,
        inputs.lengths,
        inputs.reverse,
    )
    for factors in (
        whole,
        whole._replace(x=None),
        whole._replace(weight_ih=None),
        whole._replace(y=None, h0=None),
    ):
        expected, _ = count(reference.products, factors)
        assert count(products_op[engine], *factors)[0] == expected
        recurrence, _ = count(reference.backward, saved, douts)
        both = (*factors[2:6], *flatten(douts, saved))
        if inputs.variant.gain_hh is None:
            assert count(gradients_op[engine], *both)[0] == recurrence + expected


@each_engine
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "exported"])
def test_a_training_step_counts_six_products(engine, compiled):
    module, x = LSTM(I, H, engine=engine), torch.randn(T, B, I, requires_grad=True)
    run = torch.export.export(module, (x,)).module() if compiled else module
    forward, (y, _) = count(run, x)
    assert forward == 2 * T * B * 4 * H * (I + H)
    assert count(y.sum().backward)[0] == 2 * forward
