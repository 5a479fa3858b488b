"""TensorFlow's fused layer with peepholes, BlockLSTM, and its gradient, each in a tf.function."""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # read at the import

import numpy as np
import tensorflow as tf

from bench.peers.libraries import Arrays

GATES = (0, 2, 1, 3)  # i, g, f, o of ours: i, f, g, o
Tensors = dict[str, tf.Tensor]
Found = tuple[tuple[tf.Tensor, ...], Tensors]
PARAMETERS = ("cs_prev", "h_prev", "x", "w", "wci", "wcf", "wco", "b")


def reordered(array: np.ndarray) -> np.ndarray:
    """Blocks of rows in the other order; twice is once."""
    return np.concatenate([np.split(array, 4)[place] for place in GATES])


class Program:
    """One layer.

    Args:
        arrays: weights, inputs and gradients by name.
        threads: of TensorFlow.
    """

    def __init__(self, arrays: Arrays, threads: int) -> None:
        limit_threads(threads)
        self.steps, _, self.inputs = arrays["x"].shape
        weight = np.concatenate([arrays["weight_ih_l0"], arrays["weight_hh_l0"]], axis=1)
        peephole = np.split(arrays["weight_peephole_l0"], 3)
        given = {
            "x": arrays["x"],
            "h_prev": arrays["h0"][0],
            "cs_prev": arrays["c0"][0],
            "w": np.ascontiguousarray(reordered(weight).T),  # [I + H, 4H]
            "b": reordered(arrays["bias_ih_l0"] + arrays["bias_hh_l0"]),
        } | dict(zip(("wci", "wcf", "wco"), peephole, strict=True))
        self.given = {name: tf.constant(given[name]) for name in PARAMETERS}
        self.gradients = [tf.constant(arrays[f"d_{name}"]) for name in ("y", "h_n", "c_n")]
        self.run, self.run_both = tf.function(self.lstm), tf.function(self.both)

    def lstm(self, given: Tensors) -> tuple[tf.Tensor, ...]:
        """Outputs y [T, B, H], h_n and c_n [1, B, H]."""
        out = tf.raw_ops.BlockLSTM(
            seq_len_max=self.steps, forget_bias=0.0, cell_clip=-1.0, use_peephole=True, **given
        )
        return out.h, out.h[-1:], out.cs[-1:]

    def both(self, given: Tensors) -> Found:
        """Outputs, and the gradients of all that is given."""
        with tf.GradientTape() as tape:
            tape.watch(given)
            outputs = self.lstm(given)
        return outputs, tape.gradient(outputs, given, self.gradients)

    def forward(self) -> Found:
        """The outputs, and no gradients."""
        return self.run(self.given), {}

    def training(self) -> Found:
        """The outputs, and the gradients of all that is given."""
        found: Found = self.run_both(self.given)
        return found

    def named(self, found: Found) -> Arrays:
        """As arrays, in our order."""
        outputs, gradients = found
        named = dict(zip(("y", "h_n", "c_n"), (t.numpy() for t in outputs), strict=True))
        if not gradients:
            return named
        d = {name: gradient.numpy() for name, gradient in gradients.items()}
        weight, bias = reordered(d["w"].T), reordered(d["b"])
        named |= {"d_x": d["x"], "d_h0": d["h_prev"][None], "d_c0": d["cs_prev"][None]}
        named |= {"d_weight_ih_l0": weight[:, : self.inputs], "d_weight_hh_l0": weight[:, self.inputs :]}
        named |= {"d_bias_ih_l0": bias, "d_bias_hh_l0": bias}
        return named | {"d_weight_peephole_l0": np.concatenate([d["wci"], d["wcf"], d["wco"]])}


def limit_threads(threads: int) -> None:
    """Before it has computed anything; afterwards it refuses."""
    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
