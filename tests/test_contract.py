"""What follows from the records of the contract: schemas, shapes, axes, and the way there and back."""

import pytest
import torch
from cases import EVERY_VARIANT, PLAIN, layer_inputs, layer_saved, make_lengths, make_masks, make_tensors

from lstm_fused import contract, reference
from lstm_fused.autograd.function import LSTMFunction
from lstm_fused.autograd.operators import backward_op, forward_op, gradients_op, products_op
from lstm_fused.contract import (
    Gradients,
    Inputs,
    OutputGradients,
    Outputs,
    Saved,
    Variant,
    flatten,
    unflatten,
)

# Programs that were exported hold the operators with these arguments in this order.
FORWARD = (
    "(Tensor x, Tensor? weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? peephole, "
    "Tensor? weight_hr, Tensor h0, Tensor c0, Tensor? lengths, bool reverse, bool save, "
    "Tensor? gain_hh=None, Tensor? h_mask=None, Tensor? zoneout_h=None, Tensor? zoneout_c=None, "
    "float? cell_clip=None) "
    "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor gates)"
)
BACKWARD = (
    "(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor c, Tensor gates, Tensor c0, Tensor weight_hh, "
    "Tensor? peephole, Tensor? weight_hr, Tensor? lengths, bool reverse, Tensor? gain_hh=None, "
    "Tensor? h_mask=None, Tensor? zoneout_h=None, Tensor? zoneout_c=None, float? cell_clip=None, "
    "Tensor? hw=None) "
    "-> (Tensor dxw, Tensor dh0, Tensor dc0, Tensor dbias, Tensor dpeephole, Tensor dhw)"
)
PRODUCTS = (
    "(Tensor dxw, Tensor? dhw, Tensor? x, Tensor? weight_ih, Tensor? y, Tensor? h0, Tensor? lengths, "
    "bool reverse) -> (Tensor dx, Tensor dweight_ih, Tensor dweight_hh)"
)
GRADIENTS = (
    "(Tensor? x, Tensor? weight_ih, Tensor? y, Tensor? h0, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor c, "
    "Tensor gates, Tensor c0, Tensor weight_hh, Tensor? peephole, Tensor? weight_hr, Tensor? lengths, "
    "bool reverse, Tensor? gain_hh=None, Tensor? h_mask=None, Tensor? zoneout_h=None, "
    "Tensor? zoneout_c=None, float? cell_clip=None, Tensor? hw=None) "
    "-> (Tensor dx, Tensor dweight_ih, Tensor dweight_hh, Tensor dh0, Tensor dc0, Tensor dbias, "
    "Tensor dpeephole)"
)


def records(case):
    """The records of a case: inputs, outputs, saved, gradients of the outputs, gradients."""
    t, masks = make_tensors(case, torch.float32), make_masks(case, torch.float32)
    variant = Variant.of(t.get("gain_hh"), *masks.values(), case.cell_clip)
    inputs = layer_inputs(t, make_lengths(case), case.reverse)._replace(variant=variant)
    outputs = reference.forward(inputs)
    hw = torch.randn(case.T, case.B, 4 * case.H) if case.layer_norm else None
    saved = layer_saved(inputs, outputs)._replace(hw=hw)
    douts = OutputGradients(*outputs[:3])
    return inputs, outputs, saved, douts, reference.backward(saved, douts)


@pytest.mark.parametrize("engine", forward_op)
def test_operators_have_the_schema_of_the_contract(engine):
    operators = [(forward_op[engine], FORWARD), (backward_op[engine], BACKWARD)]
    if engine in products_op:
        operators += [(products_op[engine], PRODUCTS), (gradients_op[engine], GRADIENTS)]
    for operator, schema in operators:
        assert str(operator._schema).partition("(")[2] == schema[1:]


@pytest.mark.parametrize("case", [PLAIN, EVERY_VARIANT], ids=lambda case: case.name)
def test_flatten_and_unflatten_are_inverse(case):
    inputs, outputs, saved, douts, found = records(case)
    for given in ((inputs,), (saved,), (douts, saved), (douts, inputs, outputs, found)):
        kinds = [type(record) for record in given]
        flat = flatten(*given)
        assert len(flat) == len(contract.specs(*kinds)) == len(contract.batch_axes(*kinds))
        back = unflatten(flat, *kinds)
        assert [type(record) for record in back] == kinds
        assert all(a is b for a, b in zip(flatten(*back), flat, strict=True))


def test_what_lacks_at_the_end_is_as_by_default():
    inputs, _, saved, douts, _ = records(PLAIN)
    (short,) = unflatten(inputs[:-1], Inputs)
    assert short.variant is contract.PLAIN
    assert all(a is b for a, b in zip(short, inputs, strict=True))
    _, short = unflatten((*douts, *saved[:-2]), OutputGradients, Saved)
    assert (short.variant, short.hw) == (contract.PLAIN, None)


@pytest.mark.parametrize("case", [PLAIN, EVERY_VARIANT], ids=lambda case: case.name)
def test_every_tensor_looks_as_its_spec_says(case):
    sizes = {
        "T": case.T,
        "B": case.B,
        "I": case.I,
        "H": case.H,
        "P": case.H,
        "3": 3,
        "4H": 4 * case.H,
    }
    for record in records(case):
        for value, spec in zip(flatten(record), contract.specs(type(record)), strict=True):
            assert isinstance(value, torch.Tensor) <= (spec is not None)
            if isinstance(value, torch.Tensor) and value.shape != (0,):
                assert list(value.shape) == [sizes[dim] for dim in spec.dims.split()]
                assert value.dtype == (torch.int64 if spec.dtype == "int64" else torch.float32)


@pytest.mark.parametrize("save", [False, True])
def test_empty_outputs_look_as_the_reference_s(save):
    inputs = records(PLAIN)[0]._replace(save=save)
    takes = dict(zip(contract.INPUTS, flatten(inputs), strict=True))
    empty = contract.empty_outputs(takes, Outputs, inputs.x, torch.float32)
    assert [e.shape for e in empty] == [o.shape for o in reference.forward(inputs)]


def test_an_operator_refuses_arguments_on_two_devices():
    inputs, _, saved, douts, _ = records(PLAIN)
    for operators, record in ((forward_op, (inputs,)), (backward_op, (douts, saved))):
        flat = flatten(*record)
        for n, value in enumerate(flat):
            if isinstance(value, torch.Tensor):
                mixed = (*flat[:n], value.to("meta"), *flat[n + 1 :])
                for engine, operator in operators.items():
                    if not engine.startswith(("triton", "metal")):
                        with pytest.raises(RuntimeError, match="must be on"):
                            operator(*mixed)


def test_only_inputs_that_users_differentiate_are_differentiable():
    names = [contract.INPUTS[n] for n in contract.DIFFERENTIABLE]
    weights = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole", "weight_hr"]
    assert names == ["x", *weights, "h0", "c0", "gain_hh"]
    axes = dict(zip(contract.INPUTS, contract.batch_axes(Inputs), strict=True))
    assert {name for name in names if axes[name] is None} == {*weights, "gain_hh"}
    assert contract.batch_axes(Gradients) == (1, 0, 0, None, None, 1)


def test_a_gradient_is_formed_for_each_differentiable_input_alone():
    inputs = records(EVERY_VARIANT)[0]
    for n in contract.DIFFERENTIABLE:
        operands = list(flatten(inputs))
        if operands[n] is not None:
            operands[n] = operands[n].clone().requires_grad_()
            operands[contract.INPUTS.index("save")] = True
            y = LSTMFunction.apply("reference", *operands)[0]
            (grad,) = torch.autograd.grad(y.sum(), operands[n])
            assert grad.shape == operands[n].shape and grad.any()


def test_a_name_has_one_spec():
    for record in contract.RECORDS:
        for name, spec in zip(contract.hints(record), contract.specs(record), strict=True):
            if spec is not None:
                assert contract.SPECS[name].dims == spec.dims
    assert all(contract.SPECS[contract.INPUTS[n]].grad for n in contract.DIFFERENTIABLE)


def test_the_variant_comes_last():
    assert contract.INPUTS[-len(Variant._fields) :] == Variant._fields
