"""Compares converted models with Keras and TensorFlow themselves; run by `make test-interop`."""

import os

import numpy as np
import pytest
import torch

from lstm_fused.convert import from_keras, from_tensorflow

# Read on import: Keras 3 runs on PyTorch; TensorFlow takes its version 1 cells from Keras 2.
os.environ |= {"KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations among themselves and of NumPy
B, T, I, H = 3, 6, 5, 7


def draw(shape):
    return np.random.default_rng(int(np.prod(shape))).normal(size=tuple(shape)).astype(np.float32)


def check(module, x, outputs):
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], torch.tensor(np.array(outputs)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_keras(bias):
    import keras

    layers = [
        keras.layers.Bidirectional(keras.layers.LSTM(H, use_bias=bias, return_sequences=True)),
        keras.layers.Bidirectional(keras.layers.LSTM(H, use_bias=bias, return_sequences=True)),
    ]
    y = x = torch.randn(B, T, I)
    for layer in layers:
        layer.build(y.shape)
        layer.set_weights([draw(weight.shape) for weight in layer.get_weights()])
        y = layer(y)
    check(from_keras(*(layer.get_weights() for layer in layers)), x, y.detach())


@pytest.mark.parametrize("bias", [False, True])
def test_keras_2_peephole_cell(bias):
    from tensorflow.python.keras.layers.recurrent import RNN, PeepholeLSTMCell

    layer = RNN(PeepholeLSTMCell(H, use_bias=bias, recurrent_activation="sigmoid"), return_sequences=True)
    x = torch.randn(B, T, I)
    layer.build(x.shape)
    layer.set_weights([draw(weight.shape) for weight in layer.get_weights()])
    check(from_keras(layer.get_weights()), x, layer(x.numpy()))


@pytest.mark.parametrize("peephole", [False, True])
def test_tensorflow_1_cell(peephole):
    import tensorflow

    rnn_cell = tensorflow.compat.v1.nn.rnn_cell
    cells = [rnn_cell.LSTMCell(H, use_peepholes=peephole, forget_bias=0.75) for _ in range(2)]
    x = torch.randn(T, B, I)
    y = list(x.numpy())
    weights = []
    for cell in cells:
        cell.build((B, y[0].shape[1]))
        cell.set_weights([draw(weight.shape) for weight in cell.get_weights()])
        weights.append({v.name.split("/")[-1].removesuffix(":0"): v.numpy() for v in cell.variables})
        state, steps = cell.zero_state(B, tensorflow.float32), []
        for x_t in y:
            h, state = cell(x_t, state)
            steps.append(h)
        y = steps
    check(from_tensorflow(*weights, forget_bias=0.75), x, y)


def test_tensorflow_block_lstm():
    import tensorflow

    cell = {"kernel": draw((I + H, 4 * H)), "bias": draw((4 * H,))}
    cell |= {f"w_{gate}_diag": draw((H + k,))[k:] for k, gate in enumerate("ifo")}
    x = torch.randn(T, B, I)
    out = tensorflow.raw_ops.BlockLSTM(
        seq_len_max=T,
        x=x.numpy(),
        cs_prev=np.zeros((B, H), np.float32),
        h_prev=np.zeros((B, H), np.float32),
        w=cell["kernel"],
        wci=cell["w_i_diag"],
        wcf=cell["w_f_diag"],
        wco=cell["w_o_diag"],
        b=cell["bias"],
        forget_bias=1.0,
        cell_clip=-1.0,
        use_peephole=True,
    )
    check(from_tensorflow(cell), x, out.h)
