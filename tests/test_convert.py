"""Conversion of weights, tested against the libraries' equations; tests/interop.py tests the libraries."""

import numpy as np
import pytest
import torch
from test_module import OPTIONS, option_id
from torch import nn

from lstm_fused import LSTM
from lstm_fused.convert import from_keras, from_tensorflow

F64 = torch.float64
T, B, I, H = 6, 3, 5, 7


def close(ours, theirs):
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=1e-12, atol=1e-12)


def draw(*shape):
    return np.random.default_rng(len(shape) + sum(shape)).normal(size=shape)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_to_torch_undoes_from_torch(options):
    theirs = nn.LSTM(I, H, dtype=F64, **options).eval()
    theirs.weight_hh_l0.requires_grad_(False)
    for peephole in (False, True):
        back = LSTM.from_torch(theirs, peephole=peephole).to_torch()
        assert type(back) is nn.LSTM and repr(back) == repr(theirs) and not back.training
        assert back.state_dict().keys() == theirs.state_dict().keys()
        for (name, value), (_, copy) in zip(theirs.named_parameters(), back.named_parameters(), strict=True):
            assert torch.equal(copy, value) and copy.requires_grad == value.requires_grad, name
            assert copy.data_ptr() != value.data_ptr(), name
        x = torch.randn(4, 3, I, dtype=F64)
        close(back(x)[0], theirs(x)[0].detach())


def test_to_torch_keeps_dropout_and_refuses_peepholes():
    assert LSTM(I, H, 2, dropout=0.25, peephole=False).to_torch().dropout == 0.25
    module = LSTM(I, H, bidirectional=True)
    nn.init.zeros_(module.weight_peephole_l0)
    with pytest.raises(ValueError, match="weight_peephole_l0_reverse: expected zeros, because"):
        module.to_torch()


def test_to_torch_expands_coupled_gates_and_refuses_other_options():
    ours = LSTM(I, H, 2, bidirectional=True, peephole=False, coupled=True, forget_bias=1.0, dtype=F64)
    ours.weight_hh_l1.requires_grad_(False)
    theirs, x = ours.to_torch(), torch.randn(4, 3, I, dtype=F64)
    close(theirs(x)[0].detach(), ours(x)[0].detach())
    assert theirs.weight_ih_l0.shape == (4 * H, I) and not theirs.weight_hh_l1.requires_grad
    for option in ("recurrent_dropout", "zoneout_h", "zoneout_c", "cell_clip"):
        with pytest.raises(ValueError, match=f"{option}: expected none, as torch.nn.LSTM has none, got 0.5"):
            LSTM(I, H, peephole=False, **{option: 0.5}).to_torch()
    with pytest.raises(ValueError, match="layer_norm: expected none"):
        LSTM(I, H, peephole=False, layer_norm=True).to_torch()


def keras(arrays, x, peepholes=(0, 0, 0)):
    """Run one Keras layer in one direction over x [B, T, I], in Keras's notation."""
    kernel, recurrent_kernel, bias = arrays
    p_i, p_f, p_o = peepholes
    h = c = np.zeros((len(x), H))
    steps = []
    for t in range(x.shape[1]):
        z = x[:, t] @ kernel + h @ recurrent_kernel + bias
        z0, z1, z2, z3 = np.split(z, 4, axis=1)
        i, f = sigmoid(z0 + p_i * c), sigmoid(z1 + p_f * c)
        c = f * c + i * np.tanh(z2)
        o = sigmoid(z3 + p_o * c)
        h = o * np.tanh(c)
        steps.append(h)
    return np.stack(steps, axis=1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("peephole", [False, True])
def test_keras(bias, peephole):
    x = draw(B, T, I)
    layers, y = [], x
    for width in (I, 2 * H):
        layers.append([])
        ys = []
        for step in (1, -1):
            weights = [draw(width, 4 * H) * step, draw(H, 4 * H), draw(4 * H)]
            peepholes = [draw(H), draw(H + 1)[1:] * step, draw(H + 2)[2:]]
            layers[-1] += weights[: 2 + bias] + peepholes * peephole
            outputs = keras([*weights[:2], weights[2] * bias], y[:, ::step], np.array(peepholes) * peephole)
            ys.append(outputs[:, ::step])
        y = np.concatenate(ys, axis=2)
    module = from_keras(*layers, engine="reference")
    assert repr(module) == repr(
        LSTM(I, H, 2, bias, True, bidirectional=True, peephole=peephole, engine="reference")
    )
    close(module(torch.tensor(x))[0].detach(), y)


@pytest.mark.parametrize("peephole", [False, True])
def test_tensorflow(peephole):
    x = draw(T, B, I)
    cells, y = [], x
    for width in (I, H):
        cell = {"kernel": draw(width + H, 4 * H), "bias": draw(4 * H)}
        diagonals = {f"w_{gate}_diag": draw(H + k)[k:] for k, gate in enumerate("fio")}
        cells.append(cell | diagonals if peephole else cell)
        w = {name: value * peephole for name, value in diagonals.items()}
        h = c = np.zeros((B, H))
        steps = []
        for x_t in y:
            i, j, f, o = np.split(np.concatenate([x_t, h], 1) @ cell["kernel"] + cell["bias"], 4, axis=1)
            c = sigmoid(f + 0.75 + w["w_f_diag"] * c) * c + sigmoid(i + w["w_i_diag"] * c) * np.tanh(j)
            h = sigmoid(o + w["w_o_diag"] * c) * np.tanh(c)
            steps.append(h)
        y = np.stack(steps)
    module = from_tensorflow(*cells, forget_bias=0.75)
    assert repr(module) == repr(LSTM(I, H, 2, peephole=peephole))
    close(module(torch.tensor(x))[0].detach(), y)


def test_arrays_may_be_read_only_lists_or_tensors():
    kernel, recurrent_kernel = draw(I, 4 * H).astype(np.float32), draw(H, 4 * H).astype(np.float32)
    kernel.flags.writeable = False
    first = from_keras([kernel, recurrent_kernel])
    second = from_keras([torch.tensor(kernel, requires_grad=True), recurrent_kernel.tolist()])
    assert torch.equal(first.weight_ih_l0, second.weight_ih_l0) and first.weight_ih_l0.requires_grad
    assert torch.equal(first.weight_hh_l0, second.weight_hh_l0)


KERNEL, RECURRENT, BIAS, PEEPHOLE = draw(I, 4 * H), draw(H, 4 * H), draw(4 * H), draw(H)
CELL = {"kernel": draw(I + H, 4 * H), "bias": BIAS}
PEEPHOLES = {f"w_{gate}_diag": PEEPHOLE for gate in "ifo"}
ARRAYS = r"layers: expected kernel, recurrent kernel, bias and peepholes: \(I, 4H\), .* got \["
NUMBERS = "layers: expected arrays of numbers, got "
DTYPES = "expected arrays of one floating-point dtype, got "
NAMES = r"cells: expected kernel and bias, .* got \["
SHAPES = r"cells: expected kernel \(I \+ H, 4H\), bias \(4H,\), and peepholes \(H,\), got kernel \("


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "layers: expected the weights of at least one layer, got none"),
        ([[]], "layers: expected the weights of at least one layer, got none"),
        ([[KERNEL, RECURRENT], []], "layers: expected the weights of at least one layer, got none"),
        ([None], r"layers: expected a list of arrays for each layer, as of get_weights\(\), got NoneType"),
        ([{"kernel": KERNEL}], "layers: expected a list of arrays for each layer, .* got dict"),
        (["kernel"], "layers: expected a list of arrays for each layer, .* got str"),
        ([KERNEL], "layers: expected a list of arrays for each layer, .* got ndarray"),
        ([[KERNEL]], ARRAYS),
        ([[KERNEL, KERNEL]], ARRAYS),
        ([[KERNEL, RECURRENT[:, :-1]]], ARRAYS),
        ([[KERNEL[:, :-1], RECURRENT]], ARRAYS),
        ([[KERNEL, RECURRENT, draw(H)]], ARRAYS),
        ([[KERNEL, RECURRENT, BIAS, PEEPHOLE]], ARRAYS),
        ([[KERNEL, RECURRENT, 3.0]], ARRAYS),
        ([[KERNEL, RECURRENT, draw(1, 4 * H)]], ARRAYS),
        ([[KERNEL[:0], RECURRENT]], ARRAYS),
        ([[np.zeros((I, 0)), np.zeros((0, 0))]], ARRAYS),
        ([[BIAS, KERNEL, RECURRENT]], "layers: expected kernel, .* of one or two directions, got"),
        ([[KERNEL, RECURRENT] * 3], "layers: expected kernel, .* of one or two directions, got"),
        ([[KERNEL, RECURRENT]] * 2, r"each fed by the one before, got weight_ih_l1 \(28, 5\) where"),
        ([[KERNEL, RECURRENT, BIAS], [RECURRENT, RECURRENT]], "layers of one kind, .* got bias_ih_l1 none"),
        ([[KERNEL, RECURRENT], [RECURRENT, RECURRENT, BIAS]], r"got bias_ih_l1 \(28,\) where .* none"),
        ([[KERNEL, RECURRENT, KERNEL, RECURRENT, BIAS]], "got bias_ih_l0_reverse .* asks for none"),
        ([[KERNEL, RECURRENT.astype(np.float32)]], f"layers: {DTYPES}torch.float32, torch.float64"),
        (
            [[KERNEL, RECURRENT], [RECURRENT.astype(np.float32)] * 2],
            f"layers: {DTYPES}torch.float32, torch.float64",
        ),
        ([[KERNEL.astype(int), RECURRENT.astype(int)]], f"layers: {DTYPES}torch.int64"),
        ([[KERNEL.astype(complex), RECURRENT]], f"layers: {DTYPES}torch.complex128, torch.float64"),
        ([[KERNEL > 0, RECURRENT > 0]], f"layers: {DTYPES}torch.bool"),
        ([[KERNEL, None]], f"{NUMBERS}NoneType"),
        ([[KERNEL.astype(object), RECURRENT]], f"{NUMBERS}ndarray: can't convert .*object_"),
        ([[KERNEL.astype(str), RECURRENT]], f"{NUMBERS}ndarray: can't convert .*str_"),
        ([[[[1.0, 2.0], [3.0]], RECURRENT]], f"{NUMBERS}list: expected sequence of length 2"),
        (
            [[torch.tensor(KERNEL).to_sparse(), RECURRENT]],
            "layers: expected dense tensors, .* torch.sparse_coo",
        ),
        (
            [[torch.tensor(KERNEL, device="meta"), RECURRENT]],
            "layers: expected dense tensors, got .* on meta",
        ),
    ],
)
def test_invalid_keras_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        from_keras(*weights)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "cells: expected the weights of at least one layer, got none"),
        ([None], "cells: expected the variables of each cell by name, got NoneType"),
        ([[KERNEL, BIAS]], "cells: expected the variables of each cell by name, got list"),
        ([{}], NAMES),
        ([{"kernel": KERNEL}], NAMES + "'kernel'"),
        ([{1: KERNEL, "bias": BIAS}], NAMES + "1, 'bias'"),
        ([CELL | {"w_i_diag": PEEPHOLE}], NAMES + "'kernel', 'bias', 'w_i_diag'"),
        ([CELL | {"projection/kernel": KERNEL}], NAMES),
        ([CELL | PEEPHOLES | {"w_f_diag": BIAS}], SHAPES),
        ([CELL | {"kernel": CELL["kernel"].T}], SHAPES),
        ([CELL | {"kernel": CELL["kernel"][:H]}], SHAPES),
        ([CELL | {"kernel": BIAS}], SHAPES),
        ([CELL | {"kernel": 1.0}], SHAPES),
        ([CELL | {"bias": 1.0}], SHAPES),
        ([CELL | {"bias": BIAS[:0]}], SHAPES),
        ([CELL | {"bias": BIAS[None]}], SHAPES),
        ([CELL | {"kernel": None}], "cells: expected arrays of numbers, got NoneType"),
        ([CELL | {"bias": BIAS.astype(np.float32)}], f"cells: {DTYPES}torch.float32, torch.float64"),
        ([{name: value.astype(int) for name, value in CELL.items()}], f"cells: {DTYPES}torch.int64"),
        ([CELL, CELL], r"cells: expected layers of one kind, .* got weight_ih_l1 \(28, 5\) where"),
    ],
)
def test_invalid_tensorflow_variables_are_refused(cells, message):
    with pytest.raises(ValueError, match=message):
        from_tensorflow(*cells)


@pytest.mark.parametrize("forget_bias", [float("nan"), float("inf"), None, "1", True, 1j, torch.ones(1)])
def test_an_invalid_forget_bias_is_refused(forget_bias):
    with pytest.raises(ValueError, match="forget_bias: expected a finite number, got "):
        from_tensorflow(CELL, forget_bias=forget_bias)


@pytest.mark.parametrize("forget_bias", [2, np.float32(2), np.int64(2)])
def test_forget_bias_may_be_any_number_type(forget_bias):
    module, plain = from_tensorflow(CELL, forget_bias=forget_bias), from_tensorflow(CELL, forget_bias=0.0)
    assert torch.equal(module.bias_ih_l0[H : 2 * H], plain.bias_ih_l0[H : 2 * H] + 2)
