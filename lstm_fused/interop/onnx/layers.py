"""Recognises in a graph the stack of layers and the outputs of an `LSTM`."""

from typing import NamedTuple

import torch
from onnx import NodeProto
from torch import Tensor

from lstm_fused.errors import bad
from lstm_fused.interop.onnx.file import File, attributes
from lstm_fused.interop.onnx.operation import Operation, read_operation, weight
from lstm_fused.interop.onnx.tensors import Tensors, graph_input
from lstm_fused.interop.onnx.views import DTYPES, KNOWN, Value, is_filled, nonzero, same

STATES = {"h": 5, "c": 6}  # initial states, and their positions among the inputs
OUTPUTS = ("output", "h_n", "c_n")  # in the order in which a module returns them
GEMM = {"alpha": (1.0,), "beta": (1.0,), "transA": (0,), "transB": (0, 1)}  # supported values
NONE = Value("no tensor")


class Initial(NamedTuple):
    """An initial state of a node; its value is None if it is zero."""

    layer: int
    operation: Operation
    value: Value | None


class Layers:
    """Follows the tensors of a graph from its inputs to its outputs.

    Symbolic sizes are replaced by distinct primes. A shape expression that is right for two sets of primes is
    right for all sizes.

    Args:
        file: the graph.
        least: lower bound of the primes.

    Raises:
        ValueError: the graph does not compute an `LSTM` or a `SequenceClassifier`.
    """

    def __init__(self, file: File, least: int) -> None:
        self.file = file
        self.tensors = Tensors(file, least)
        operations = [read_operation(file, node) for node in file.of("LSTM")]
        if len({operation.kind for operation in operations}) > 1:
            raise bad("path", "layers of one kind", " and ".join(map(str, operations)))
        self.kind = operations[0]
        self.D = 1 + any(1 in operation.slots for operation in operations)
        self.L = sum(0 in operation.slots for operation in operations)
        if not self.L:
            raise bad("path", "a forward direction, as no module runs in reverse only", f"{operations[0]}")
        self.layers: list[dict[int, Operation]] = [{} for _ in range(self.L)]  # by direction
        self.batch_first = False
        self.x: dict[str, Tensor] = {}  # inputs of layers, [T, B, I or D * H], by the origin of views
        self.last: dict[str, Tensor] = {}  # h_n and c_n, [L * D, B, H], by the same
        self.lengths: set[str] = set()  # origin of the nodes' lengths, "" without
        self.initial: dict[str, list[Initial]] = {"h": [], "c": []}
        self.head: NodeProto | None = None
        self.logits: Tensor | None = None
        remaining = iter(operations)
        for node in file.nodes:
            kind = file.kind(node)
            if kind == "LSTM":
                values = self.run(next(remaining))
            elif kind == "Gemm":
                values = [self.head_logits(node)]
            elif kind == "Where":
                values = [self.last_state(node)]
            elif set(node.output) <= file.constants.keys():
                continue
            else:
                values = self.tensors.move(kind, node)
            self.tensors.add(node, values)
        self.check_states()
        self.check_outputs()

    def run(self, operation: Operation) -> list[Value]:
        """The outputs of an LSTM node: Y, Y_h and Y_c."""
        k = self.find_layer(operation)
        origin, y = list(self.x.items())[k + 1]
        T, B, _ = y.shape
        first, n = operation.slots[0], len(operation.slots)
        self.add_lengths(operation, T, B)
        for state, place in STATES.items():
            self.add_initial(state, k, operation, place, B)
        y = y.view(T, B, self.D, operation.H).narrow(2, first, n)
        values = [Value(origin, y.permute((1, 0, 2, 3) if operation.layout else (0, 2, 1, 3)))]
        for origin, rows in self.last.items():
            own = rows.narrow(0, k * self.D + first, n)
            values.append(Value(origin, own.transpose(0, 1) if operation.layout else own))
        return values

    def find_layer(self, operation: Operation) -> int:
        """The index of the layer that an LSTM node computes, in one direction or both."""
        x = self.tensors.value(operation.input(0)) or NONE
        steps = x.tensor
        if steps is not None and operation.layout and steps.dim() == 3:
            steps = steps.transpose(0, 1)
        if not self.x:
            self.find_input(x, steps, operation)
        if x.origin not in self.x or not same(steps, self.x[x.origin]):
            before = [str(done) for layer in self.layers for done in layer.values()]
            got = self.tensors.describe(x)
            raise bad("path", f"the outputs of {before[-1]} to go on as [T, B, D * H] to {operation}", got)
        k = list(self.x).index(x.origin)
        beside = [self.layers[k][slot] for slot in operation.slots if k < self.L and slot in self.layers[k]]
        if beside:
            raise bad("path", f"the outputs of {beside[0]} to go on to the next", f"{operation} beside it")
        width = operation.H * self.D if k else self.kind.I
        if k == self.L or width != operation.I:
            raise bad("path", f"{self.L} layers, each fed by the one before", f"{operation} over these")
        self.layers[k] |= dict.fromkeys(operation.slots, operation)
        return k

    def find_input(self, x: Value, steps: Tensor | None, operation: Operation) -> None:
        """Identify the input of the first LSTM as the module's input."""
        source = self.tensors.inputs.get(x.origin)
        orders = []
        if source is not None and source.dim() == 3 and self.tensors.fits(source.shape[2], operation.I):
            views = (source, source.transpose(0, 1))
            orders = [order for order, view in enumerate(views) if same(steps, view)]
            if len(orders) == 2 and steps is not None:  # both fit one step of one sequence
                orders = [int(steps.stride() == views[1].stride())]
        if source is None or not orders or source.dtype != operation.dtype:
            wanted = f"a graph input [T, B, I] or [B, T, I] with I = {operation.I} of {operation.dtype}"
            raise bad("path", f"the first LSTM to read {wanted}", self.tensors.describe(x))
        self.batch_first = orders == [1]
        steps = source.transpose(0, 1) if self.batch_first else source
        T, B, _ = steps.shape
        width, rows = self.D * operation.H, self.L * self.D
        self.x[x.origin] = steps
        for k in range(self.L):
            self.x[f"the output of layer {k}"] = self.tensors.source([T, B, width], operation.dtype)
        for state in STATES:
            self.last[f"{state}_n"] = self.tensors.source([rows, B, operation.H], operation.dtype)

    def add_lengths(self, operation: Operation, T: int, B: int) -> None:
        """Check that a node's lengths are a graph input, or T for all sequences."""
        value = self.tensors.value(operation.input(4))
        origin = ""
        if value is not None:
            tensor, source = value.tensor, self.tensors.inputs.get(value.origin)
            fitting = tensor is not None and tensor.dim() == 1 and self.tensors.fits(tensor.shape[0], B)
            if value.origin == KNOWN and tensor is not None:
                right = is_filled(tensor, T)
            else:
                right = source is not None and same(tensor, source)
                origin = value.origin
            if tensor is None or not fitting or not right or tensor.dtype != torch.int32:
                wanted = f"lengths of {operation} from a graph input, int32 (B,), or T for all"
                raise bad("path", wanted, self.tensors.describe(value))
        self.lengths.add(origin)
        if len(self.lengths) > 1:
            raise bad("path", "the same lengths in all layers", f"others at {operation}")

    def add_initial(self, state: str, k: int, operation: Operation, place: int, B: int) -> None:
        """Check that an initial state of a node is zero or a view of a graph input."""
        name = operation.input(place)
        value = self.tensors.value(name)
        if value is not None:
            rows = value.tensor
            if rows is not None and operation.layout and rows.dim() == 3:
                rows = rows.transpose(0, 1)
            right = rows is not None and rows.dim() == 3 and rows.dtype == operation.dtype
            if rows is not None and right and value.origin == KNOWN:
                shape = (len(operation.slots), B, operation.H)
                right = all(map(self.tensors.fits, rows.shape, shape)) and is_filled(rows, 0)
            if not right or value.origin not in (KNOWN, *self.tensors.inputs):
                got = f"{name!r}, {self.tensors.describe(value)}"
                raise bad("path", f"inputs or zeros as initial states of {operation}", got)
            value = Value(value.origin, rows) if value.origin != KNOWN else None
        self.initial[state].append(Initial(k, operation, value))

    def last_state(self, node: NodeProto) -> Value:
        """A Where node: the last state, or the initial state for length 0, as `export` writes it."""
        condition, last, first = (self.tensors.value(name) or NONE for name in node.input)
        lengths = "".join(self.lengths)
        initial = {entry.value.origin for entry in self.initial.get(last.origin[0], []) if entry.value}
        if (
            lengths
            and condition.origin == nonzero(lengths)
            and same(condition.tensor, self.tensors.inputs[lengths].unsqueeze(1))
            and last.origin in self.last
            and same(last.tensor, self.last[last.origin])
            and initial == {first.origin}
            and same(first.tensor, self.tensors.inputs[first.origin])
            and self.tensors.inputs[first.origin].shape == self.last[last.origin].shape
        ):
            return last
        return Value(f"{node.output[0]!r} of Where")

    def head_logits(self, node: NodeProto) -> Value:
        """A Gemm node as a classifier's head: the logits."""
        values = attributes(node)
        for name, value in values.items():
            if value not in GEMM.get(name, ()):
                raise bad("path", f"{name} of Gemm {node.name!r} to be one of {GEMM.get(name)}", value)
        x = self.tensors.value(node.input[0]) or NONE
        state = self.last["h_n"][-1] if self.last else None
        reads_last = state is not None and x.origin == "h_n" and same(x.tensor, state)
        if state is None or not reads_last or self.D == 2 or not self.batch_first:
            wanted = "the Gemm to read Y_h of a last LSTM that is forward and batch-first"
            raise bad("path", wanted, self.tensors.describe(x))
        shapes = [list(proto.dims) if (proto := weight(self.file, node, n)) else None for n in (1, 2)]
        types = {proto.data_type for n in (1, 2) if (proto := weight(self.file, node, n))}
        H = self.kind.H
        C = (shapes[1] or [0])[0]
        expected = [[C, H] if values.get("transB") else [H, C], [C]]
        if C < 1 or shapes != expected or {DTYPES.get(kind) for kind in types} != {self.kind.dtype}:
            raise bad("path", f"the Gemm to have a weight [C, {H}] and a bias [C] like the LSTM's", shapes)
        self.head = node
        self.logits = self.tensors.source([state.shape[0], C], self.kind.dtype)
        return Value("logits", self.logits)

    def check_states(self) -> None:
        """Check that initial states are graph inputs in a module's order."""
        origins = {state: self.check_initial(state, entries) for state, entries in self.initial.items()}
        order = list(map(graph_input, self.file.inputs))
        h, c = ([order.index(origin) for origin in origins[state]] for state in STATES)
        in_order = h == sorted(h) and c == sorted(c) and all(map(int.__lt__, h, c))
        named = graph_input("h_0") not in origins["c"] and graph_input("c_0") not in origins["h"]
        if not in_order or not named or set(h) & set(c):
            raise bad("path", "graph inputs in the order h_0, c_0, by layers", [*origins["h"], *origins["c"]])

    def check_initial(self, state: str, entries: list[Initial]) -> list[str]:
        """Check that the nodes' initial states are the rows of one graph input, or one input each."""
        entries.sort(key=lambda entry: (entry.layer, entry.operation.slots))
        given = [(entry, entry.value, entry.value.tensor) for entry in entries if entry.value is not None]
        origins = list(dict.fromkeys(value.origin for _, value, _ in given))
        fits, B = self.tensors.fits, self.last["h_n"].shape[1]
        right = len(given) in (0, len(entries))
        for (k, operation, _), value, rows in given:
            source, n = self.tensors.inputs[value.origin], len(operation.slots)
            own = len(origins) == len(given)
            first = 0 if own else k * self.D + operation.slots[0]
            total = n if own else self.L * self.D
            right = right and (own or len(origins) == 1) and source.dim() == 3
            right = right and all(map(fits, source.shape, (total, B, operation.H)))
            right = right and same(rows, source if own else source.narrow(0, first, n))
        if not right:
            wanted = f"graph inputs [{self.L * self.D}, B, H], row for row, as initial {state}, or none"
            raise bad("path", wanted, ", ".join(self.tensors.describe(entry.value) for entry in entries))
        return origins

    def check_outputs(self) -> None:
        """Check that the graph's outputs are those of a module."""
        order = []
        for name, info in self.file.outputs.items():
            value = self.tensors.value(name)
            which = self.find_output(value)
            dtype = DTYPES.get(info.type.tensor_type.elem_type)
            misnamed = which in OUTPUTS and name in (*OUTPUTS, "logits") and name != which
            if not which or dtype != self.kind.dtype or misnamed:
                wanted = "the output, h_n or c_n of a module, or the logits of a classifier"
                raise bad("path", f"output {name!r} to be {wanted}", self.tensors.describe(value))
            order.append(which)
        names = ("logits",) if self.head is not None else OUTPUTS
        if order != [name for name in names if name in order]:
            raise bad("path", f"outputs in the order of {', '.join(names)}", order)

    def find_output(self, value: Value | None) -> str:
        """The name of the module's output that this is, or ""."""
        origin, y = list(self.x.items())[-1]
        views = [y.transpose(0, 1) if self.batch_first else y]
        if self.D == 1:
            views.append(views[0].unsqueeze(2 if self.batch_first else 1))  # the node's Y
        if value is None or value.tensor is None:
            return ""
        if value.origin == origin and any(same(value.tensor, view) for view in views):
            return "output"
        whole = self.logits if value.origin == "logits" else self.last.get(value.origin)
        return value.origin if whole is not None and same(value.tensor, whole) else ""
