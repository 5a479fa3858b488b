"""`replace`, `restore` and `replacing`: our modules in the place of torch's in whole models, and back."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import jit, nn
from torch.nn.utils import parametrize

from lstm_fused.errors import ArgumentError, bad_type
from lstm_fused.interop.construction import Makers, made_by, torchs_own
from lstm_fused.interop.nn_lstm import VARIANTS
from lstm_fused.interop.transform import (
    Skip,
    check_weights,
    from_quantization,
    pair_of,
    refuse_relatives,
    shapes_of,
    trainable,
    transform,
)
from lstm_fused.layers.cell import LSTMCell
from lstm_fused.layers.classifier import SequenceClassifier
from lstm_fused.layers.lstm import LSTM
from lstm_fused.layers.options import engine_name, flag
from lstm_fused.layers.parameters import PEEPHOLE

OURS: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: LSTM, nn.LSTMCell: LSTMCell}
TORCHS = {ours: theirs for theirs, ours in OURS.items()}


@dataclass(frozen=True)
class Report:
    """What `replace` or `restore` did to a model; ``print`` it to read it.

    Attributes:
        model: the model that was given.
        replaced: the modules that changed, by each of their names in the model; the root's name is "".
        skipped: the LSTMs that stay as they are, by name, each with the reason.
        peepholes: the peephole parameters that were added, each under its first name. An existing optimizer
            needs them: ``optimizer.add_param_group({"params": report.peepholes.values()})``. After
            `restore`, those that were removed.
    """

    model: nn.Module
    replaced: dict[str, nn.Module] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    peepholes: dict[str, nn.Parameter] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line for each module."""
        width = max(map(len, (*self.replaced, *self.skipped)), default=0) + 2
        lines = [f"{name or '(root)':<{width}} {module!r}" for name, module in self.replaced.items()]
        lines += [f"{name or '(root)':<{width}} skipped: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines) or "no LSTM found"


def replace(model: nn.Module, peephole: bool = True, engine: str | None = None) -> Report:
    """Turn every `torch.nn.LSTM` and `torch.nn.LSTMCell` of a model into `LSTM` and `LSTMCell`, in place.

    The modules keep their identity and change their class, so that every reference to them stays valid, also
    the root and a layer used twice. They keep their parameters, buffers, hooks and mode: optimizers, averages
    of the weights and handles of hooks go on. Peepholes start at zero, so outputs stay the same. A peephole
    has the dtype and device of weight_hh of its layer and direction, requires gradients if weight_hh does,
    and is shared where weight_hh is.

    Only the exact classes are replaced. Parametrized and pruned weights stay so. The following are skipped:
    subclasses, quantized and scripted modules, modules whose ``forward`` was set on the instance, parameters
    that are missing, sharded, not yet initialised or of mixed dtypes or devices, what
    FullyShardedDataParallel wraps, and, if peepholes are added, what DistributedDataParallel wraps.

    Load a state dict that has no peepholes with ``strict=False``, as for `LSTM`.

    Args:
        model: the model, or an LSTM itself.
        peephole: whether to add peepholes.
        engine: as for `LSTM`.

    Returns:
        The modules replaced, the modules skipped with the reason, and the new parameters.

    Raises:
        ArgumentError: model is not a module, peephole not a flag, or no such engine exists.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.LSTM(8, 16))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> report = lstm_fused.replace(model)
        >>> optimizer.add_param_group({"params": report.peepholes.values()})
        >>> print(report)
        0   LSTM(8, 16, peephole=True)
    """
    peephole, engine = flag("peephole", peephole), engine_name("engine", engine)
    return convert(model, partial(replaced, peephole=peephole, engine=engine, shared=shared_already(model)))


def restore(model: nn.Module) -> Report:
    """Turn every `LSTM` and `LSTMCell` of a model into torch's, in place, where their peepholes are zero.

    The reverse of `replace`, with the same guarantees. The following are skipped: modules with peepholes that
    are not zero or are parametrized, or with options that torch lacks, subclasses, and the LSTM of a
    `SequenceClassifier`, which calls it with ``lengths``.

    Args:
        model: the model, or an LSTM itself.

    Returns:
        The modules restored, the modules skipped with the reason, and the peepholes that were removed.

    Raises:
        ArgumentError: model is not a module.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.LSTM(5, 7))
        >>> report = replace(model, peephole=False)
        >>> report = restore(model)
        >>> type(model[0])
        <class 'torch.nn.modules.rnn.LSTM'>
    """
    return convert(model, restored)


def replacing(*, peephole: bool = False, engine: str | None = None) -> AbstractContextManager[None]:
    """While the context lasts, `torch.nn.LSTM` and `torch.nn.LSTMCell` make `LSTM` and `LSTMCell`.

    For code that builds its own layers. The classes of torch stay what they are, whatever name they were
    imported by; only the result of calling them differs, so subclasses and ``isinstance`` behave as before.
    With the same seed the weights are those that torch would draw, unless peepholes are drawn between them.
    Other threads are not affected.

    Args:
        peephole: whether to add peepholes, with random values, as the constructors do.
        engine: as for `LSTM`.

    Returns:
        The context.

    Raises:
        ArgumentError: peephole is not a flag, or no such engine exists.

    Example:
        >>> with lstm_fused.replacing():
        ...     model = torch.nn.Sequential(torch.nn.LSTM(8, 16))
        >>> model
        Sequential(
          (0): LSTM(8, 16, peephole=False)
        )
    """
    options = {"peephole": flag("peephole", peephole), "engine": engine_name("engine", engine)}
    makers: Makers = {theirs: partial(ours, **options) for theirs, ours in OURS.items()}
    return made_by(makers)


Peepholes = dict[str, nn.Parameter]
Step = Callable[[nn.Module, tuple[nn.Module, ...]], Peepholes | None]


def convert(model: nn.Module, step: Step) -> Report:
    """Take every module of a model once through a step; it returns peepholes, None, or raises `Skip`."""
    if not isinstance(model, nn.Module):
        raise bad_type("model", "a torch.nn.Module", type(model).__name__)
    report = Report(model)
    done: dict[nn.Module, Peepholes | Skip | None] = {}
    listed: set[int] = set()
    with torch.inference_mode(False), torch.no_grad(), torchs_own():
        for name, module, above in walk(model):
            if module not in done:
                try:
                    done[module] = peepholes = step(module, above)
                except Skip as reason:
                    done[module] = reason
                else:
                    dot = name and f"{name}."
                    new = {n: p for n, p in (peepholes or {}).items() if id(p) not in listed}
                    report.peepholes.update({dot + n: p for n, p in new.items()})
                    listed.update(map(id, new.values()))
            outcome = done[module]
            if isinstance(outcome, Skip):
                report.skipped[name] = str(outcome)
            elif outcome is not None:
                report.replaced[name] = module
    return report


Place = tuple[str, nn.Module, tuple[nn.Module, ...]]


def walk(module: nn.Module, name: str = "", above: tuple[nn.Module, ...] = ()) -> Iterator[Place]:
    """Every module of a model under each of its names, with the modules that hold it."""
    yield name, module, above
    if isinstance(module, jit.ScriptModule) or from_quantization(module):
        return
    for child_name, child in module._modules.items():
        if child is not None and child not in above:
            yield from walk(child, f"{name}.{child_name}".lstrip("."), (*above, module))


def shared_already(model: object) -> dict[nn.Parameter, nn.Parameter]:
    """The peepholes of layers that an earlier call replaced, by their weight_hh."""
    found: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules() if isinstance(model, nn.Module) else ():
        held = module._parameters if type(module) in TORCHS else {}
        for name, peephole in held.items():
            weight = held.get("weight_hh" + name.removeprefix(PEEPHOLE))
            if name.startswith(PEEPHOLE) and peephole is not None and weight is not None:
                found[weight] = peephole
    return found


def replaced(
    module: nn.Module,
    above: tuple[nn.Module, ...],
    peephole: bool,
    engine: str | None,
    shared: dict[nn.Parameter, nn.Parameter],
) -> Peepholes | None:
    """The step of `replace`; ``shared`` holds the peepholes by their weight_hh."""
    kind = parametrize.type_before_parametrizations(module)
    if kind not in OURS:
        refuse_relatives(module, kind)
        return None
    if "forward" in vars(module):
        raise Skip("its forward was set on the instance")
    for wrapper in (type(each).__name__ for each in above):
        if wrapper == "FullyShardedDataParallel" or (wrapper == "DistributedDataParallel" and peephole):
            raise Skip(f"{wrapper} knows its parameters already; replace before wrapping")
    try:
        old, new = pair_of(module, kind, peephole, engine)
    except (ArgumentError, TypeError, AttributeError) as error:  # attributes may have been set or deleted
        raise Skip(str(error)) from error
    check_weights(module, shapes_of(new))
    peepholes = {}
    for name, own in new._parameters.items():
        if own is None or not name.startswith(PEEPHOLE):
            continue
        weight = "weight_hh" + name.removeprefix(PEEPHOLE)
        held = module._parameters.get(weight)
        made = None if held is None else shared.get(held)
        if made is None:
            zeros = getattr(module, weight).new_zeros(own.shape)
            made = nn.Parameter(zeros, requires_grad=trainable(module, weight))
        if held is not None:  # a weight that is computed is shared with no layer
            shared[held] = made
        peepholes[name] = made
    transform(module, old, new, peepholes)
    return peepholes


def restored(module: nn.Module, above: tuple[nn.Module, ...]) -> Peepholes | None:
    """The step of `restore`."""
    kind = parametrize.type_before_parametrizations(module)
    if kind not in TORCHS:
        if isinstance(module, (LSTM, LSTMCell)):
            raise Skip(f"{kind.__name__} is a subclass of lstm_fused's")
        return None
    assert isinstance(module, (LSTM, LSTMCell))
    if above and isinstance(above[-1], SequenceClassifier):
        raise Skip("SequenceClassifier calls it with lengths")
    if options := ", ".join(name for name in ("coupled", *VARIANTS) if getattr(module, name, None)):
        raise Skip(f"torch has no {options}")
    names = [name for name in shapes_of(module) if name.startswith(PEEPHOLE)]
    peepholes: Peepholes = {}
    for name in names:
        parameter = module._parameters.get(name)
        if parameter is None:
            raise Skip(f"{name} is parametrized or pruned")
        if parameter.is_meta or parameter.any():
            size = "unknown" if parameter.is_meta else f"up to {parameter.abs().max():.3g}"
            raise Skip(f"{name} is not zero: {size}")
        peepholes[name] = parameter
    new, old = pair_of(module, TORCHS[kind], module.peephole, module.engine)
    transform(module, old, new, {})
    if kind is LSTM:
        as_torchs = cast(nn.LSTM, module)
        as_torchs._init_flat_weights()
        as_torchs.flatten_parameters()
    return peepholes
