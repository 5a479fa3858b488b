"""TensorFlow's fused layer with peepholes, BlockLSTM, and its gradient, each in a tf.function."""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # read at the import

import numpy as np
import tensorflow as tf

from bench.peers.libraries import OUTPUTS, Arrays, Program

GATES = (0, 2, 1, 3)  # i, g, f, o of ours: i, f, g, o
Tensors = dict[str, tf.Tensor]
Found = tuple[tuple[tf.Tensor, ...], Tensors]
PARAMETERS = ("cs_prev", "h_prev", "x", "w", "wci", "wcf", "wco", "b")


def reordered(array: np.ndarray) -> np.ndarray:
    """Blocks of rows in the other order; twice is once."""
    return np.concatenate([np.split(array, 4)[place] for place in GATES])


def named(found: Found) -> Arrays:
    """Outputs and gradients as arrays, in our order."""
    outputs, gradients = found
    arrays = dict(zip(OUTPUTS, (t.numpy() for t in outputs), strict=True))
    if not gradients:
        return arrays
    d = {name: gradient.numpy() for name, gradient in gradients.items()}
    (inputs,), weight, bias = d["x"].shape[2:], reordered(d["w"].T), reordered(d["b"])
    arrays |= {"d_x": d["x"], "d_h0": d["h_prev"][None], "d_c0": d["cs_prev"][None]}
    arrays |= {"d_weight_ih_l0": weight[:, :inputs], "d_weight_hh_l0": weight[:, inputs:]}
    arrays |= {"d_bias_ih_l0": bias, "d_bias_hh_l0": bias}
    return arrays | {"d_weight_peephole_l0": np.stack([d["wci"], d["wcf"], d["wco"]])}


def program(arrays: Arrays, threads: int) -> Program:
    """One layer."""
    config = tf.config.threading
    if config.get_intra_op_parallelism_threads() != threads:  # refused once it has computed anything
        config.set_intra_op_parallelism_threads(threads)
        config.set_inter_op_parallelism_threads(threads)
    weight = np.concatenate([arrays["weight_ih_l0"], arrays["weight_hh_l0"]], axis=1)
    parameters = {
        "x": arrays["x"],
        "h_prev": arrays["h0"][0],
        "cs_prev": arrays["c0"][0],
        "w": np.ascontiguousarray(reordered(weight).T),  # [I + H, 4H]
        "b": reordered(arrays["bias_ih_l0"] + arrays["bias_hh_l0"]),
    } | dict(zip(("wci", "wcf", "wco"), arrays["weight_peephole_l0"], strict=True))
    given = {name: tf.constant(parameters[name]) for name in PARAMETERS}
    gradients = [tf.constant(arrays[f"d_{name}"]) for name in OUTPUTS]
    options = {"seq_len_max": len(arrays["x"]), "forget_bias": 0.0, "cell_clip": -1.0, "use_peephole": True}

    def lstm(given: Tensors) -> tuple[tf.Tensor, ...]:
        out = tf.raw_ops.BlockLSTM(**options, **given)
        return out.h, out.h[-1:], out.cs[-1:]

    def both(given: Tensors) -> Found:
        with tf.GradientTape() as tape:
            tape.watch(given)
            outputs = lstm(given)
        return outputs, tape.gradient(outputs, given, gradients)

    forward, training = tf.function(lstm), tf.function(both)
    return Program(lambda: (forward(given), {}), lambda: training(given), named)
