"""`export`: writes a module as an ONNX file, with one LSTM node per layer."""

import contextlib
import os
from typing import Any

import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor, nn

from lstm_fused.errors import bad
from lstm_fused.interop.convert import reorder
from lstm_fused.layers.classifier import SequenceClassifier
from lstm_fused.layers.lstm import LSTM

OPSET, IR_VERSION = 17, 8  # opset of 2022, which has every operator used here
LARGEST = 2**31  # bytes
DTYPES = {
    torch.float16: TensorProto.FLOAT16,
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
}
# Operands of ONNX's LSTM: the parameters they are made of, our gate order and ONNX's.
OPERANDS = {
    "W": (("weight_ih",), "ifgo", "iofg"),
    "R": (("weight_hh",), "ifgo", "iofg"),
    "B": (("bias_ih", "bias_hh"), "ifgo", "iofg"),
    "P": (("peephole",), "ifo", "iof"),
}
SWAP_BATCH_AND_TIME = (1, 0, 2)
STEPS_BEFORE_DIRECTIONS = (0, 2, 1, 3)  # Y is [T, D, B, H]


class Graph:
    """The nodes and constants of a file that is being written."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Add a node and return the name of its first output."""
        self.nodes.append(helper.make_node(op, inputs, outputs, outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, value: Tensor) -> str:
        """Add a constant and return its name."""
        self.constants.append(numpy_helper.from_array(value.detach().cpu().contiguous().numpy(), name))
        return name

    def layer(self, lstm: LSTM, layer: int, x: str, lengths: str, states: bool) -> str:
        """Add one layer with all directions over x [T, B, I] and return the name of its Y."""
        weights = {}
        for operand, (names, ours, theirs) in OPERANDS.items():
            directions = [
                [reorder(value, ours, theirs) for name in names if (value := getattr(part, name)) is not None]
                for part in map(lstm._parameters_of, lstm._suffixes(layer))
            ]
            weights[operand] = ""  # absent
            if directions[0]:
                value = torch.stack([torch.cat(rows) for rows in directions])
                value = value.flatten(1) if operand == "P" else value
                weights[operand] = self.constant(f"{operand}_l{layer}", value)
        initial = [f"h_0_l{layer}", f"c_0_l{layer}"] if states else ["", ""]
        return self.add(
            "LSTM",
            [x, weights["W"], weights["R"], weights["B"], lengths, *initial, weights["P"]],
            [f"y_l{layer}", f"h_n_l{layer}", f"c_n_l{layer}"],
            direction="bidirectional" if lstm.bidirectional else "forward",
            hidden_size=lstm.hidden_size,
        )

    def join(self, y: str, width: int) -> str:
        """Concatenate the directions of a layer's Y, [T, B, width]."""
        shape = self.constant(f"{y}_shape", torch.tensor([0, 0, width]))  # 0: unchanged
        steps = self.add("Transpose", [y], [f"{y}_steps"], perm=STEPS_BEFORE_DIRECTIONS)
        return self.add("Reshape", [steps, shape], [f"{y}_joined"])


def export(
    module: LSTM | SequenceClassifier,
    path: str | os.PathLike[str],
    *,
    lengths: bool = False,
    states: bool = False,
) -> None:
    """Write an `LSTM` or a `SequenceClassifier` in eval mode as an ONNX file of opset 17 with symbolic T, B.

    `torch.onnx.export` writes other models that hold the layers: see `translation_table`.

    Coupled gates are written as all four.

    The graph's inputs and outputs have the names and layouts of the module's own: "input", then "lengths" and
    "h_0", "c_0" if requested; "output", "h_n", "c_n", or "logits" of a classifier.

    Args:
        module: the module, of float16, float32 or float64, on any device.
        path: the file to write.
        lengths: whether the graph takes the valid steps of each sequence, int32 of shape (B,).
        states: whether the graph takes the initial states; they are zero otherwise.

    Raises:
        ValueError: ONNX's LSTM operator lacks a projection, layer norm, zoneout, cell_clip or dtype of the
            module.
        OSError: the file cannot be written; an existing file is unchanged.

    Examples:
        >>> export(LSTM(28, 64), "lstm.onnx", lengths=True)
    """
    check_path(path)
    for argument, flag in (("lengths", lengths), ("states", states)):
        if not isinstance(flag, bool):
            raise bad(argument, "True or False", repr(flag))
    head = module.head if isinstance(module, SequenceClassifier) else None
    lstm = module.lstm if isinstance(module, SequenceClassifier) else module
    check_expressible(lstm)
    if head is not None:
        check_head(head, lstm)
        if states:
            raise bad("states", "False with a SequenceClassifier, which takes none", states)

    D, L, H = lstm.num_directions, lstm.num_layers, lstm.hidden_size
    float_type = DTYPES[lstm._parameters_of("l0").weight_ih.dtype]

    def value(name: str, *shape: str | int, dtype: int = float_type) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    steps = ("B", "T") if lstm.batch_first else ("T", "B")
    inputs = [value("input", *steps, lstm.input_size)]
    if lengths:
        inputs.append(value("lengths", "B", dtype=TensorProto.INT32))
    graph, x = Graph(), "input"
    if states:
        rows = graph.constant("rows", torch.full((L,), D))
        for state in ("h_0", "c_0"):
            inputs.append(value(state, L * D, "B", H))
            graph.add("Split", [state, rows], [f"{state}_l{layer}" for layer in range(L)], axis=0)
    if lstm.batch_first:
        x = graph.add("Transpose", [x], ["input_steps"], perm=SWAP_BATCH_AND_TIME)
    for layer in range(L):
        x = graph.join(x, D * H) if layer > 0 else x
        x = graph.layer(lstm, layer, x, "lengths" if lengths else "", states)
    if head is None:
        outputs = [value("output", *steps, D * H)]
        x = graph.join(x, D * H)
        if lstm.batch_first:
            graph.add("Transpose", [x], ["output"], perm=SWAP_BATCH_AND_TIME)
        else:
            graph.add("Identity", [x], ["output"])
        if lengths and states:
            # ONNX does not define the last states of a sequence of length 0; onnxruntime returns zeros.
            stepped = graph.add("Cast", ["lengths"], ["stepped"], to=TensorProto.BOOL)
            column = graph.constant("column", torch.tensor([1]))
            stepped = graph.add("Unsqueeze", [stepped, column], ["stepped_column"])  # [B, 1]
        for state in ("h_n", "c_n"):
            outputs.append(value(state, L * D, "B", H))
            pieces = [f"{state}_l{layer}" for layer in range(L)]
            if lengths and states:
                last = graph.add("Concat", pieces, [f"{state}_of_steps"], axis=0)
                graph.add("Where", [stepped, last, state[0] + "_0"], [state])
            else:
                graph.add("Concat", pieces, [state], axis=0)
    else:
        outputs = [value("logits", "B", head.out_features)]
        last = graph.add("Squeeze", [f"h_n_l{L - 1}", graph.constant("axis", torch.tensor([0]))], ["last"])
        weights = [graph.constant("head_weight", head.weight)]
        if head.bias is not None:
            weights.append(graph.constant("head_bias", head.bias))
        graph.add("Gemm", [last, *weights], ["logits"], transB=1)

    model = helper.make_model(
        helper.make_graph(graph.nodes, "lstm_fused", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="lstm_fused",
    )
    if model.ByteSize() >= LARGEST:
        raise bad("module", f"weights of less than {LARGEST} bytes, ONNX's limit of a file", model.ByteSize())
    onnx.checker.check_model(model, full_check=True)
    save(model, os.path.realpath(os.fsdecode(path)))


def save(model: ModelProto, path: str) -> None:
    """Write a file atomically."""
    folder, name = os.path.split(path)
    part = os.path.join(folder, f".{os.getpid()}.{name}")  # the file extension decides on the format
    try:
        onnx.save(model, part)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


def check_path(path: object) -> None:
    """Check that a path is valid for a file."""
    if not isinstance(path, (str, os.PathLike)) or "\0" in os.fsdecode(path):
        raise bad("path", "the path of a file", repr(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise bad("path", "the path of a file", f"{os.fspath(path)}, which is not a file")


def check_head(head: object, lstm: LSTM) -> None:
    """Check a classifier's modules, which users may replace."""
    if not isinstance(head, nn.Linear) or head.in_features != lstm.hidden_size or lstm.bidirectional:
        raise bad("module", "a Linear over one direction's last state in a SequenceClassifier", head)
    check_values([lstm._parameters_of("l0").weight_ih, head.weight, head.bias])


def check_expressible(lstm: object) -> None:
    """Check that ONNX's LSTM operator can compute what this module does."""
    if not isinstance(lstm, LSTM):
        kind = type(lstm)
        wanted = (
            "an LSTM or a SequenceClassifier of lstm_fused (models that hold them: torch.onnx.export with "
            "custom_translation_table=lstm_fused.onnx.translation_table())"
        )
        raise bad("module", wanted, f"{kind.__module__}.{kind.__qualname__}")
    if lstm.proj_size:
        raise bad("module", "proj_size=0, because ONNX's LSTM operator has no projection", lstm.proj_size)
    # ONNX's clip acts on the pre-activations, not on c.
    for option in ("layer_norm", "zoneout_h", "zoneout_c", "cell_clip"):
        if getattr(lstm, option):
            raise bad("module", f"no {option}, because ONNX's LSTM operator has none", getattr(lstm, option))
    suffixes = [suffix for layer in range(lstm.num_layers) for suffix in lstm._suffixes(layer)]
    check_values([value for suffix in suffixes for value in lstm._parameters_of(suffix)])


def check_values(values: list[Tensor | None]) -> None:
    """Check that parameters have values and one dtype that the operator takes."""
    dtypes = list(dict.fromkeys(value.dtype for value in values if value is not None))
    if len(dtypes) > 1 or dtypes[0] not in DTYPES:
        got = ", ".join(map(str, dtypes))
        raise bad("module", "one of float16, float32 or float64, which ONNX's LSTM operator takes", got)
    if any(value is not None and value.is_meta for value in values):
        raise bad("module", "parameters that have values", "device meta")
