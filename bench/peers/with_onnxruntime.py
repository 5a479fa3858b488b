"""The LSTM operator of ONNX with its peepholes P, by ONNX Runtime; it has no backward pass."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bench.peers.libraries import OUTPUTS, Arrays, Program

GATES = (0, 3, 1, 2)  # i, o, f, c of ours: i, f, g, o
PEEPHOLES = (0, 2, 1)  # i, o, f of ours: i, f, o


def ordered(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Blocks of rows in another order."""
    return np.concatenate([np.split(array, len(order))[place] for place in order])


def program(arrays: Arrays, threads: int) -> Program:
    """A graph of one node."""
    biases = [ordered(arrays[name], GATES) for name in ("bias_ih_l0", "bias_hh_l0")]
    weights = {
        "W": ordered(arrays["weight_ih_l0"], GATES),
        "R": ordered(arrays["weight_hh_l0"], GATES),
        "B": np.concatenate(biases),
        "P": ordered(arrays["weight_peephole_l0"].ravel(), PEEPHOLES),
    }
    inputs = {"X": arrays["x"], "initial_h": arrays["h0"], "initial_c": arrays["c0"]}
    names = ["X", "W", "R", "B", "", "initial_h", "initial_c", "P"]
    hidden = arrays["weight_hh_l0"].shape[1]
    node = helper.make_node("LSTM", names, ["Y", "Y_h", "Y_c"], hidden_size=hidden)
    value, FLOAT = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "lstm",
        [value(name, FLOAT, array.shape) for name, array in inputs.items()],
        [value(name, FLOAT, None) for name in node.output],
        [numpy_helper.from_array(np.ascontiguousarray(array[None]), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others are timed in turn
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def named(found: list[np.ndarray]) -> Arrays:
        y, h_n, c_n = found
        return dict(zip(OUTPUTS, (y[:, 0], h_n, c_n), strict=True))  # y [T, 1, B, H]

    return Program(lambda: session.run(None, inputs), None, named)
