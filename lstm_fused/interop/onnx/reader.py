"""`from_onnx`: makes a module from an ONNX file whose graph is a stack of LSTM nodes."""

import os

from lstm_fused.errors import bad
from lstm_fused.interop.convert import stack
from lstm_fused.interop.onnx.file import File, attributes
from lstm_fused.interop.onnx.layers import Layers
from lstm_fused.interop.onnx.operation import read_weights
from lstm_fused.layers.classifier import SequenceClassifier
from lstm_fused.layers.lstm import LSTM

PRIMES = (1009, 10007)  # sizes to try; see `Layers`


def from_onnx(path: str | os.PathLike[str], *, engine: str | None = None) -> LSTM | SequenceClassifier:
    """Read a module from an ONNX file whose graph is a stack of LSTM nodes, written here or elsewhere.

    The graph's outputs must be those of the module, in its layout and order: output, h_n, c_n, all or some;
    the output of a single direction may keep the direction axis of the operator's Y.

    Args:
        path: the file, of opset 7 or newer.
        engine: as for `lstm_fused.LSTM`.

    Returns:
        An `LSTM`, or a `SequenceClassifier` if a Gemm node reads the last state. Its calls accept lengths and
        initial states, whether or not the graph has them as inputs.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the graph computes something else, or has a part that is not understood; the message says
            which.

    Examples:
        >>> lstm_fused.onnx.export(lstm_fused.LSTM(28, 64), "lstm.onnx")
        >>> from_onnx("lstm.onnx").hidden_size
        64
    """
    file = File(path)
    heads = file.of("Gemm")
    if not file.of("LSTM") or len(heads) > 1:
        kinds = sorted({file.kind(node) for node in file.nodes})
        raise bad("path", "LSTM nodes, and at most one Gemm", f"{len(heads)} Gemm among {kinds}")
    for least in PRIMES:
        layers = Layers(file, least)
    weights = [read_weights(file, layer) for layer in layers.layers]
    lstm = stack("path", weights, layers.batch_first, engine)
    return classifier(file, layers, lstm) if layers.head is not None else lstm


def classifier(file: File, layers: Layers, lstm: LSTM) -> SequenceClassifier:
    """The classifier with this LSTM and the graph's Gemm as its head."""
    head = layers.head
    assert head is not None
    weight, bias = file.tensor(head.input[1]), file.tensor(head.input[2])
    if not attributes(head).get("transB"):
        weight = weight.T
    model = SequenceClassifier(
        lstm.input_size, lstm.hidden_size, lstm.num_layers, len(weight), peephole=lstm.peephole
    ).to(weight.dtype)
    model.lstm = lstm
    model.head.load_state_dict({"weight": weight, "bias": bias})
    return model
