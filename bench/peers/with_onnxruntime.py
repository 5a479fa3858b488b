"""The LSTM operator of ONNX with its peepholes P, by ONNX Runtime; it has no backward pass."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bench.peers.libraries import Arrays

GATES = (0, 3, 1, 2)  # i, o, f, c of ours: i, f, g, o
PEEPHOLES = (0, 2, 1)  # i, o, f of ours: i, f, o


def ordered(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Blocks of rows in another order."""
    return np.concatenate([np.split(array, len(order))[place] for place in order])


class Program:
    """A graph of one node.

    Args:
        arrays: weights and inputs by name.
        threads: of the runtime.
    """

    def __init__(self, arrays: Arrays, threads: int) -> None:
        hidden = arrays["weight_hh_l0"].shape[1]
        biases = [ordered(arrays[name], GATES) for name in ("bias_ih_l0", "bias_hh_l0")]
        weights = {
            "W": ordered(arrays["weight_ih_l0"], GATES)[None],
            "R": ordered(arrays["weight_hh_l0"], GATES)[None],
            "B": np.concatenate(biases)[None],
            "P": ordered(arrays["weight_peephole_l0"], PEEPHOLES)[None],
        }
        self.inputs = {"X": arrays["x"], "initial_h": arrays["h0"], "initial_c": arrays["c0"]}
        node = helper.make_node(
            "LSTM",
            ["X", "W", "R", "B", "", "initial_h", "initial_c", "P"],
            ["Y", "Y_h", "Y_c"],
            hidden_size=hidden,
        )
        graph = helper.make_graph(
            [node],
            "lstm",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
                for name, array in self.inputs.items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output],
            [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others are timed in turn
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def forward(self) -> list[np.ndarray]:
        """Y, Y_h and Y_c."""
        outputs: list[np.ndarray] = self.session.run(None, self.inputs)
        return outputs

    def training(self) -> list[np.ndarray]:
        """There is none.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("it has no backward pass")

    def named(self, found: list[np.ndarray]) -> Arrays:
        """y, h_n and c_n."""
        y, h_n, c_n = found
        return {"y": y[:, 0], "h_n": h_n, "c_n": c_n}  # y [T, 1, B, H]
