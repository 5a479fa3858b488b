"""Changes the class of a module from torch's to ours or back, in place, and says where it cannot."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, jit, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lstm_fused.backends import table
from lstm_fused.layers.cell import LSTMCell
from lstm_fused.layers.lstm import LSTM
from lstm_fused.layers.parameters import PEEPHOLE

# Attributes of every module, which stay: parameters, buffers, hooks, children, the mode.
KEPT = frozenset(vars(nn.Module()))


class Skip(Exception):
    """The reason why a module stays as it is."""


def pair_of(
    module: Any, theirs: type[nn.Module], peephole: bool, engine: str | None
) -> tuple[nn.Module, nn.Module]:
    """Torch's module and ours with the options of a module, without values."""
    if theirs is nn.LSTMCell:
        sizes = module.input_size, module.hidden_size, module.bias
        return (
            nn.LSTMCell(*sizes, device="meta"),
            LSTMCell(*sizes, device="meta", peephole=peephole, engine=engine),
        )
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "proj_size")
    options = {name: getattr(module, name) for name in names}
    old = nn.LSTM(**options, device="meta")
    new = LSTM(**options, device="meta", peephole=peephole, engine=engine)
    # Set later, because both warn of dropout with one layer, and whoever built the module has been warned.
    old.dropout = new.dropout = module.dropout
    return old, new


def transform(module: nn.Module, old: nn.Module, new: nn.Module, added: dict[str, nn.Parameter]) -> None:
    """Make a module of the kind of ``old`` one of the kind of ``new``, in place.

    Args:
        module: the module.
        old: an instance of its class with its options.
        new: an instance of the other class with its options.
        added: parameters to add.
    """
    fields, held = vars(module), dict(module._parameters)
    for name in vars(old).keys() - KEPT:
        fields.pop(name, None)
    fields.update({name: value for name, value in vars(new).items() if name not in KEPT})
    known = held | added
    own = {name: known.get(name) for name, p in new._parameters.items() if p is None or name in known}
    others = {name: p for name, p in held.items() if name not in {**own, **old._parameters}}
    module._parameters.clear()
    module._parameters.update(own | others)  # in the order of the new class
    cls: Any = type(new)
    if parametrize.is_parametrized(module):  # then the class is the module's own, with properties
        namespace = {n: v for n, v in vars(type(module)).items() if n not in ("__dict__", "__weakref__")}
        cls = type(cls)(f"Parametrized{cls.__name__}", (cls,), namespace)
    module.__class__ = cls


def refuse_relatives(module: nn.Module, kind: type[nn.Module]) -> None:
    """Raise `Skip` for modules that are LSTMs of another class."""
    if isinstance(module, jit.ScriptModule):
        if any(getattr(m, "original_name", "") in ("LSTM", "LSTMCell") for m in module.modules()):
            raise Skip("compiled by TorchScript; replace before that")
    elif from_quantization(module):
        raise Skip(f"{kind.__module__}.{kind.__name__} is quantized or made for quantization")
    elif isinstance(module, (LSTM, LSTMCell)):
        raise Skip("lstm_fused's already")
    elif isinstance(module, (nn.LSTM, nn.LSTMCell)):
        base = nn.LSTM if isinstance(module, nn.LSTM) else nn.LSTMCell
        own = "" if kind.forward is base.forward else " with a forward of its own"
        raise Skip(f"{kind.__name__} is a subclass of torch.nn.{base.__name__}{own}")


def from_quantization(module: nn.Module) -> bool:
    """True for the LSTMs of torch.ao."""
    kind = type(module)
    return kind.__module__.startswith("torch.ao.nn") and "LSTM" in kind.__name__


def shapes_of(ours: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters of ours, by name."""
    if isinstance(ours, LSTM):
        every = [shapes for directions in ours._shapes for shapes in directions.values()]
    else:
        assert isinstance(ours, LSTMCell)
        every = [ours._shapes]
    return {name: shape for shapes in every for name, shape in shapes.items() if shape is not None}


def check_weights(module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise `Skip` unless the weights are plain tensors of one dtype on one device."""
    kinds, wrapped = set(), cast(Callable[[Tensor], bool], is_traceable_wrapper_subclass)
    for name, shape in shapes.items():
        if name.startswith(PEEPHOLE):
            continue
        weight = getattr(module, name, None)
        if not isinstance(weight, Tensor):
            raise Skip(f"{name} is missing")
        if nn.parameter.is_lazy(weight):
            raise Skip(f"{name} is not initialised yet")
        if wrapped(weight) or weight.layout is not torch.strided:
            raise Skip(f"{name} is not a plain tensor: {type(weight).__name__}, {weight.layout}")
        if weight.shape != shape:
            raise Skip(f"{name} has shape {tuple(weight.shape)} rather than {shape}")
        if weight.dtype not in table.FLOATS:
            raise Skip(f"{name} is {table.short(weight.dtype)}")
        kinds.add(f"{table.short(weight.dtype)} on {weight.device}")
    if len(kinds) > 1:
        raise Skip("parameters are " + " and ".join(sorted(kinds)))


def trainable(module: nn.Module, weight: str) -> bool:
    """True if the weight requires gradients, or what it is computed from does; it may be no parameter."""
    ends = ("", "_orig", "_g", "_v")
    names = {f"{weight}{end}" for end in ends}
    return bool(
        any(
            p.requires_grad
            for name, p in module.named_parameters()
            if name in names or name.startswith(f"parametrizations.{weight}.")
        )
        or getattr(module, weight).requires_grad
    )
