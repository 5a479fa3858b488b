"""Translates the operators to ONNX's LSTM when `torch.onnx.export` writes a model that holds the layers."""

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from lstm_fused.autograd.operators import backward_op, forward_op, gradients_op, products_op
from lstm_fused.contract import SAVE, Inputs, unflatten
from lstm_fused.errors import bad

OLDEST_OPSET = 13  # Squeeze and Unsqueeze take their axes as inputs
DTYPES = (torch.float16, torch.float32, torch.float64)
Value = Any  # a tensor in an exporter's graph


class Graph(Protocol):
    """An exporter's graph."""

    def add(self, op: str, *inputs: Value | None, outputs: int = 1, **attributes: int | str) -> Any:
        """Add a node; returns its output, or all if there are several."""

    def constant(self, value: Tensor) -> Value:
        """Add a constant."""

    def like(self, value: Value) -> Tensor:
        """A meta tensor with the shape and dtype of a value whose sizes are known."""


def layer(graph: Graph, *operands: Any) -> tuple[Value, ...]:
    """The forward operator's results, computed by an LSTM node in one direction.

    Args:
        graph: the graph to add to.
        *operands: the operator's arguments: values, or None, flags and numbers.

    Raises:
        ArgumentError: ONNX's LSTM operator cannot compute this layer.
    """
    (inputs,) = unflatten(operands, Inputs)
    weight = graph.like(inputs.weight_hh)
    check(inputs, operands[SAVE], weight.dtype)
    H = len(weight) // 4

    def axis(n: int) -> Value:
        return graph.constant(torch.tensor([n]))

    def in_order(value: Value, ours: str, theirs: str) -> Value:
        rows = torch.arange(len(ours) * H).view(-1, H)[[ours.index(gate) for gate in theirs]]
        return graph.add("Gather", value, graph.constant(rows.flatten()), axis=0)

    def one_direction(value: Value) -> Value:
        return graph.add("Unsqueeze", value, axis(0))

    W, R = (one_direction(in_order(v, "ifgo", "iofg")) for v in (inputs.weight_ih, inputs.weight_hh))
    B = P = lengths = None
    if inputs.bias_ih is not None or inputs.bias_hh is not None:
        none = graph.constant(torch.zeros(4 * H, dtype=weight.dtype))
        both = [none if b is None else in_order(b, "ifgo", "iofg") for b in (inputs.bias_ih, inputs.bias_hh)]
        B = one_direction(graph.add("Concat", *both, axis=0))
    if inputs.peephole is not None:
        flat = graph.add("Reshape", inputs.peephole, graph.constant(torch.tensor([3 * H])))
        P = one_direction(in_order(flat, "ifo", "iof"))
    if inputs.lengths is not None:
        lengths = graph.add("Cast", inputs.lengths, to=INT32)
    Y, h_n, c_n = graph.add(
        "LSTM",
        *(inputs.x, W, R, B, lengths, one_direction(inputs.h0), one_direction(inputs.c0), P),
        outputs=3,
        direction="reverse" if inputs.reverse else "forward",
        hidden_size=H,
    )
    y = graph.add("Squeeze", Y, axis(1))  # Y is [T, D, B, H]
    last = [graph.add("Squeeze", state, axis(0)) for state in (h_n, c_n)]
    if lengths is not None:
        # ONNX does not define the last states of a sequence of length 0; onnxruntime returns zeros.
        stepped = graph.add("Unsqueeze", graph.add("Cast", lengths, to=BOOL), axis(1))  # [B, 1]
        last = [
            graph.add("Where", stepped, state, first)
            for state, first in zip(last, (inputs.h0, inputs.c0), strict=True)
        ]
    empty = torch.empty(0, dtype=weight.dtype)
    return y, *last, graph.constant(empty), graph.constant(empty)  # c and gates are not saved


BOOL, INT32 = 9, 6  # of onnx.TensorProto, which is not imported here


def check(inputs: Inputs, save: bool, dtype: torch.dtype) -> None:
    """Raise unless ONNX's LSTM operator can compute this layer."""
    has_none = "because ONNX's LSTM operator has none"
    if inputs.weight_hr is not None:
        raise bad("model", f"an LSTM with proj_size=0, {has_none}", "a projection")
    names = {"gain_hh": "layer_norm", "h_mask": "recurrent_dropout in training mode"}
    for name in inputs.variant.names():
        raise bad("model", f"an LSTM without {names.get(name, name)}, {has_none}", "one with it")
    if save:
        raise bad("model", "a program without gradients, which ONNX lacks", "one that saves tensors for them")
    if dtype not in DTYPES:
        raise bad("model", "an LSTM of float16, float32 or float64, which ONNX's operator takes", dtype)


def refuse(*_: Any) -> NoReturn:
    """Raise for an operator of the backward pass."""
    raise bad("model", "a program without gradients, which ONNX lacks", "one that computes them")


class ScriptGraph:
    """The graph of the exporter that is based on TorchScript, ``dynamo=False``."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def add(self, op: str, *inputs: Value | None, outputs: int = 1, **attributes: int | str) -> Any:
        """Add a node."""
        given = [self.none() if value is None else value for value in inputs]
        named = {f"{name}_{'s' if isinstance(v, str) else 'i'}": v for name, v in attributes.items()}
        return self.context.op(op, *given, outputs=outputs, **named)

    def none(self) -> Value:
        """An omitted input."""
        value = self.context.op("prim::Constant")
        value.setType(torch._C.OptionalType.ofTensor())
        return value

    def constant(self, value: Tensor) -> Value:
        """Add a constant."""
        return self.context.op("Constant", value_t=value)

    def like(self, value: Value) -> Tensor:
        """A meta tensor like a value."""
        kind = value.type()
        sizes = kind.sizes()
        if sizes is None:
            raise bad("model", "weights of known sizes", f"{kind} in the exporter's graph")
        return torch.empty(sizes, dtype=kind.dtype(), device="meta")


def operand(value: Value) -> Any:
    """An argument in a TorchScript graph: a value, or the flag or number that a constant holds."""
    node = value.node()
    if node.mustBeNone():
        return None
    if node.kind() not in ("prim::Constant", "onnx::Constant"):
        return value
    constant = node.t("value") if node.kindOf("value") == "t" else value.toIValue()
    if not isinstance(constant, Tensor):
        return constant
    return value if constant.dim() > 0 else constant.item()


def script_layer(context: Any, *values: Value) -> tuple[Value, ...]:
    """The forward operator's translation for ``dynamo=False``."""
    return layer(ScriptGraph(context), *map(operand, values))


class ScriptOpset:
    """The graph of the exporter that is based on `torch.export`, ``dynamo=True``; needs onnxscript."""

    def __init__(self) -> None:
        from onnxscript import opset18

        self.opset: Any = opset18

    def add(self, op: str, *inputs: Value | None, outputs: int = 1, **attributes: int | str) -> Any:
        """Add a node."""
        return getattr(self.opset, op)(*inputs, **attributes)

    def constant(self, value: Tensor) -> Value:
        """Add a constant."""
        import onnx_ir

        return self.opset.Constant(value=onnx_ir.tensor(value.numpy()))

    def like(self, value: Value) -> Tensor:
        """A meta tensor like a value."""
        name = value.dtype.name  # onnx_ir's
        dtype = getattr(torch, {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower()))
        return torch.empty([int(size) for size in value.shape], dtype=dtype, device="meta")


def exported_layer(
    x: Value,
    weight_ih: Value,
    weight_hh: Value,
    bias_ih: Value = None,
    bias_hh: Value = None,
    peephole: Value = None,
    weight_hr: Value = None,
    h0: Value = None,
    c0: Value = None,
    lengths: Value = None,
    reverse: bool = False,
    save: bool = False,
    *variant: Value,
) -> tuple[Value, ...]:
    """The forward operator's translation for ``dynamo=True``."""
    weights = weight_ih, weight_hh, bias_ih, bias_hh, peephole, weight_hr
    return layer(ScriptOpset(), x, *weights, h0, c0, lengths, reverse, save, *variant)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The operators' translations to ONNX's LSTM, for ``torch.onnx.export(custom_translation_table=…)``.

    Returns:
        For each operator, the function that builds its ONNX graph; needs the package onnxscript.

    Examples:
        >>> options = {"custom_translation_table": translation_table()}
        >>> torch.ops.lstm_fused.reference_forward.default in options["custom_translation_table"]
        True
    """
    return translations(exported_layer)


def translations(layer: Callable[..., Any]) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Every operator's translation, given that of the forward operators."""
    table = dict.fromkeys(forward_op.values(), layer)
    for operators in (backward_op, products_op, gradients_op):
        table |= dict.fromkeys(operators.values(), refuse)
    return table


def register() -> None:
    """Tell the exporter with ``dynamo=False`` the translations."""
    for operator, translation in translations(script_layer).items():
        name: str = operator.name()  # type: ignore[attr-defined]
        torch.onnx.register_custom_op_symbolic(name, translation, OLDEST_OPSET)  # type: ignore[attr-defined]
