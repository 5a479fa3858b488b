"""The modules' options in one table: the check of each, its default, and whether it may change later."""

import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_fused.autograd.autocast import computed_in
from lstm_fused.backends import table
from lstm_fused.backends.choice import Choice, explain
from lstm_fused.checks import check_alike, check_kind, check_parameter
from lstm_fused.contract import Variant
from lstm_fused.errors import bad, bad_type, shown
from lstm_fused.interop.graph import refuse_script
from lstm_fused.layers import parameters
from lstm_fused.layers.parameters import Parameters

LIMIT = 2**60  # sizes are smaller; PyTorch overflows above


def size(argument: str, value: Any, least: int = 1) -> int:
    """A size as a plain integer; accepts numpy's integers, and tensors and arrays of one element."""
    expected = "a positive integer" if least else "a non-negative integer"
    try:
        count = None if is_flag(value) or getattr(value, "ndim", 0) != 0 else operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        count = None
    if count is None:
        raise bad_type(argument, expected, shown(value))
    if not least <= count < LIMIT:
        raise bad(argument, expected if count < least else expected + " below 2**60", count)
    return count


def size_or_none(argument: str, value: Any) -> int:
    """The size of a projection, or 0 without one."""
    return size(argument, value, least=0)


def flag(argument: str, value: Any) -> bool:
    """A flag as a plain bool; accepts those of numpy and PyTorch."""
    if isinstance(value, bool):
        return value
    if not is_flag(value):
        raise bad_type(argument, "True or False", shown(value))
    return bool(value)


def is_flag(value: Any) -> bool:
    """True if this is a bool of Python, numpy or PyTorch."""
    if isinstance(value, bool):
        return True
    return str(getattr(value, "dtype", "")) in ("bool", "torch.bool") and not getattr(value, "ndim", 1)


def number(argument: str, value: Any, expected: str) -> float:
    """A number as a plain float; accepts numpy's numbers, and tensors and arrays of one element."""
    if isinstance(value, float):
        return float(value)
    try:
        if not is_flag(value) and not isinstance(value, (str, bytes)) and not getattr(value, "ndim", 0):
            return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise bad_type(argument, expected, shown(value))


def probability(argument: str, value: Any) -> float:
    """A probability."""
    expected = "a probability from 0 to 1"
    if not 0 <= (share := number(argument, value, expected)) <= 1:
        raise bad(argument, expected, shown(value))
    return share


def bound(argument: str, value: Any) -> float | None:
    """A bound on the magnitude of c, or None."""
    expected = "a positive number or None"
    if value is None:
        return None
    if not (magnitude := number(argument, value, expected)) > 0:
        raise bad(argument, expected, shown(value))
    return magnitude


def first_bias(argument: str, value: Any) -> float | None:
    """The initial value of a bias, or None."""
    if value is None:
        return None
    if not math.isfinite(bias := number(argument, value, "a number or None")):
        raise bad(argument, "a finite number or None", shown(value))
    return bias


def engine_name(argument: str, value: Any) -> str | None:
    """An engine's name, or None."""
    table.named(value, argument)
    return None if value is None else str(value)


def check_dtype(dtype: Any) -> None:
    """Check the dtype of parameters."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise bad_type("dtype", "a floating-point dtype or None", shown(dtype))
    if dtype is not None and dtype not in table.FLOATS:
        raise bad("dtype", "one of " + ", ".join(map(table.short, table.FLOATS)), dtype)


def check_combination(
    hidden_size: int, proj_size: int, bias: bool, forget_bias: float | None, coupled: bool, layer_norm: bool
) -> None:
    """Check combinations of options."""
    if proj_size >= hidden_size:
        raise bad("proj_size", f"a non-negative integer less than hidden_size = {hidden_size}", proj_size)
    if coupled and layer_norm:
        raise bad("coupled", "False with layer_norm, because then 1 - f is not sigmoid(-a_f)", coupled)
    if forget_bias is not None and not bias:
        raise bad("forget_bias", "None with bias=False", forget_bias)


class Option(NamedTuple):
    """One row of the table of options."""

    check: Callable[[str, Any], Any]  # (name, value) -> the value as a plain Python object; raises
    default: Any
    fixed: bool = True  # True if the parameters depend on it, so that it cannot change later


REQUIRED = object()
OPTIONS = {
    "input_size": Option(size, REQUIRED),
    "hidden_size": Option(size, REQUIRED),
    "num_layers": Option(size, 1),
    "bias": Option(flag, True),
    "batch_first": Option(flag, False, fixed=False),
    "dropout": Option(probability, 0.0, fixed=False),
    "bidirectional": Option(flag, False),
    "proj_size": Option(size_or_none, 0),
    "peephole": Option(flag, True),
    "forget_bias": Option(first_bias, None),
    "coupled": Option(flag, False),
    "layer_norm": Option(flag, False),
    "recurrent_dropout": Option(probability, 0.0, fixed=False),
    "zoneout_h": Option(probability, 0.0, fixed=False),
    "zoneout_c": Option(probability, 0.0, fixed=False),
    "cell_clip": Option(bound, None, fixed=False),
    "engine": Option(engine_name, None, fixed=False),
}


class WithOptions(nn.Module):
    """A module that checks its options whenever they are set, and shows them in its repr."""

    _options: ClassVar[dict[str, Option]] = OPTIONS
    layer_norm: bool
    recurrent_dropout: float
    zoneout_h: float
    zoneout_c: float
    cell_clip: float | None
    engine: str | None

    def __setattr__(self, name: str, value: Any) -> None:
        option = self._options.get(name)
        if option is not None:
            value = option.check(name, value)
            current = self.__dict__.get(name, value)
            if option.fixed and current != value:
                raise bad(name, f"{current!r}, which the parameters were created with", repr(value))
        super().__setattr__(name, value)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        """Load parameters. Missing peepholes become zero if the layer's weights are present."""
        parameters.reshape_flat_peepholes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        assign = local_metadata.get("assign_to_params_buffers", False)
        rest[-1].extend(parameters.zero_absent_peepholes(self, state_dict, prefix, assign))  # error messages

    def engine_for(self, input: Tensor | PackedSequence) -> Choice:
        """Tell which engine runs for an input, and why; nothing is computed.

        Args:
            input: what `forward` takes; its device and dtype decide, with this module's options, its mode and
                autocast.

        Returns:
            The choice, with its ``engine``, ``detail``, ``refused`` and ``asked``; ``print`` it to read it.

        Raises:
            ArgumentError: input is neither a tensor nor a PackedSequence, or `forward` refuses its dtype,
                device or layout.
            RuntimeError: the engine that this module names cannot serve.

        Example:
            >>> module = lstm_fused.LSTM(8, 16, dtype=torch.float16)
            >>> print(module.engine_for(torch.zeros(5, 2, 8, dtype=torch.float16)))
            reference, because cpp takes bfloat16, float32, float64, not float16
        """
        x: Any = input.data if isinstance(input, PackedSequence) else input
        if not isinstance(x, Tensor):
            raise bad_type("input", "a tensor or a PackedSequence", type(x).__name__)
        check_kind(x)
        for name, parameter in self._parameters.items():  # parametrized ones are not computed
            if parameter is not None:
                check_alike(name, parameter, x)
        options = self._options.keys()
        rates = [self.training and "recurrent_dropout" in options and self.recurrent_dropout > 0]
        rates += [self.zoneout_h > 0, self.zoneout_c > 0]
        some = x.new_empty(0)
        drawn = [some if used else None for used in (self.layer_norm, *rates)]
        return explain(self.engine, x.device, computed_in(x), Variant.of(*drawn, self.cell_clip))

    def __prepare_scriptable__(self) -> NoReturn:
        """Raise: `torch.jit.script` calls this before it compiles a model."""
        refuse_script(type(self).__name__)

    def _own(self, shapes: parameters.Shapes, input: Tensor) -> Parameters:
        """The parameters of these names, read and checked at every call, because they may change."""
        own, dtype, device = self._held(shapes), input.dtype, input.device
        for parameter, (name, shape) in zip(own, shapes.items(), strict=True):
            # The usual parameter passes in one expression: a step of a cell takes but 100 µs.
            if shape is not None and not (
                isinstance(parameter, Tensor)
                and parameter.layout is torch.strided
                and not parameter.is_nested
                and parameter.shape == shape
                and parameter.dtype is dtype
                and parameter.device == device
            ):
                check_parameter(name, parameter, shape, input)
        return own

    def _held(self, shapes: parameters.Shapes) -> Parameters:
        """The parameters of these names, unchecked, but there."""
        held = self._parameters
        own: list[Any] = []
        for name, shape in shapes.items():
            parameter: Any = None
            if shape is not None:
                parameter = held.get(name)
                if parameter is None:
                    parameter = getattr(self, name)  # a parametrized one; for others this is slow
                if parameter is None:
                    raise bad_type(name, f"a tensor of shape {shape}", "NoneType")
            own.append(parameter)
        return Parameters(*own)

    def extra_repr(self) -> str:
        """The sizes, peephole, and the options that differ from their defaults, as torch.nn.LSTM does."""
        items = []
        for name, option in self._options.items():
            value = getattr(self, name)
            if option.default is REQUIRED:
                items.append(repr(value))
            elif value != option.default or name == "peephole":
                items.append(f"{name}={value!r}")
        return ", ".join(items)
