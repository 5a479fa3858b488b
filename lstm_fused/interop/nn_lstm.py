"""Copies of torch.nn.LSTM and torch.nn.LSTMCell, from and to."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from lstm_fused.checks import check_torch
from lstm_fused.errors import bad
from lstm_fused.interop.construction import torchs_own

if TYPE_CHECKING:
    from lstm_fused.layers.cell import LSTMCell
    from lstm_fused.layers.lstm import LSTM

Ours = TypeVar("Ours", bound="LSTM")
OurCell = TypeVar("OurCell", bound="LSTMCell")
Torchs = TypeVar("Torchs", nn.LSTM, nn.LSTMCell)
PLAIN = "plain parameters, not parametrized, weight-normed or pruned ones"
# Options of ours that change the outputs and that torch lacks; a cell has some of them.
VARIANTS = ("layer_norm", "recurrent_dropout", "zoneout_h", "zoneout_c", "cell_clip")


def copy_of(
    cls: type[Ours], lstm: nn.LSTM | Mapping[str, Tensor], peephole: bool, engine: str | None
) -> Ours:
    """`LSTM.from_torch`."""
    if isinstance(lstm, Mapping):
        lstm = from_state_dict(lstm)
    check_torch("lstm", lstm, nn.LSTM)
    parameter = next(lstm.parameters())
    module = cls(
        lstm.input_size,
        lstm.hidden_size,
        lstm.num_layers,
        lstm.bias,
        lstm.batch_first,
        lstm.dropout,
        lstm.bidirectional,
        lstm.proj_size,
        parameter.device,
        parameter.dtype,
        peephole=peephole,
        engine=engine,
    )
    fill("lstm", module, lstm)
    return module


def copy_of_cell(cls: type[OurCell], cell: nn.LSTMCell, peephole: bool, engine: str | None) -> OurCell:
    """`LSTMCell.from_torch`."""
    check_torch("cell", cell, nn.LSTMCell)
    parameter = next(cell.parameters())
    kind = parameter.device, parameter.dtype
    module = cls(cell.input_size, cell.hidden_size, cell.bias, *kind, peephole=peephole, engine=engine)
    fill("cell", module, cell)
    return module


def fill(argument: str, module: nn.Module, given: nn.Module) -> None:
    """Copy the parameters, what requires gradients, and the mode; peepholes become zero."""
    weights = given.state_dict()
    plain = {name for name in module.state_dict() if "peephole" not in name}
    if odd := ", ".join(sorted(plain ^ weights.keys())):
        raise bad(argument, PLAIN, odd)
    for name, own in module.state_dict().items():
        if "peephole" in name:
            weights[name] = torch.zeros_like(own)
    module.load_state_dict(weights)
    for name, own in module.named_parameters():
        if "peephole" not in name:
            own.requires_grad_(given.get_parameter(name).requires_grad)
    module.train(given.training)


def from_state_dict(weights: Mapping[str, Tensor]) -> nn.LSTM:
    """The torch.nn.LSTM that has this state dict."""
    matrices = {
        name: value for name, value in weights.items() if isinstance(value, Tensor) and value.dim() == 2
    }
    first = matrices.get("weight_ih_l0")
    if first is None:
        names = ", ".join(map(repr, weights))
        raise bad("lstm", "the state dict of a torch.nn.LSTM, with 'weight_ih_l0'", shown_names(names))
    projection = matrices.get("weight_hr_l0")
    sizes = {
        "num_layers": sum(name.startswith("weight_ih_l") and "_reverse" not in name for name in weights),
        "bias": "bias_ih_l0" in weights,
        "bidirectional": "weight_ih_l0_reverse" in weights,
        "proj_size": 0 if projection is None else len(projection),
    }
    try:
        with torchs_own():
            lstm = nn.LSTM(first.shape[1], len(first) // 4, **sizes, device="meta", dtype=first.dtype)
        # Assigning a parameter itself would make it require gradients.
        values = {n: v.detach() if isinstance(v, Tensor) else v for n, v in weights.items()}
        lstm.load_state_dict(values, assign=True)
    except (ValueError, RuntimeError) as error:  # of sizes, of names
        reason = " ".join(str(error).split())
        raise bad("lstm", "the state dict of a torch.nn.LSTM", f"another: {reason}") from None
    for name, own in lstm.named_parameters():
        given = weights[name]
        own.requires_grad_(given.requires_grad or not isinstance(given, nn.Parameter))
    return lstm


def shown_names(names: str) -> str:
    """The names of a state dict, the first ones of many."""
    return names if len(names) <= 100 else f"{names[:96]} ..."


def copy_to(module: "LSTM") -> nn.LSTM:
    """`LSTM.to_torch`."""
    check_plain(module)
    parameter = module.get_parameter("weight_ih_l0")
    with torchs_own():
        lstm = nn.LSTM(
            module.input_size,
            module.hidden_size,
            module.num_layers,
            module.bias,
            module.batch_first,
            module.dropout,
            module.bidirectional,
            module.proj_size,
            parameter.device,
            parameter.dtype,
        )
    suffixes = [suffix for layer in range(module.num_layers) for suffix in module._suffixes(layer)]
    return filled(
        lstm,
        module,
        {
            f"{name}_{suffix}": value
            for suffix in suffixes
            for name, value in module._parameters_of(suffix)._asdict().items()
        },
    )


def copy_to_cell(module: "LSTMCell") -> nn.LSTMCell:
    """`LSTMCell.to_torch`."""
    check_plain(module)
    weight = module.weight_ih
    with torchs_own():
        cell = nn.LSTMCell(module.input_size, module.hidden_size, module.bias, weight.device, weight.dtype)
    return filled(cell, module, dict(module._parameters_of()._asdict()))


def check_plain(module: "LSTM | LSTMCell") -> None:
    """Check that torch's module can have these parameters and options."""
    for name, value in module.named_parameters():
        if "." in name or name.endswith(("_orig", "_g", "_v")):
            raise bad(name, PLAIN, "this")
        if "peephole" in name and value.any():
            raise bad(name, "zeros, because torch.nn.LSTM has no peepholes", f"up to {value.abs().max():.3g}")
    for option in VARIANTS:
        if getattr(module, option, None):
            raise bad(option, "none, as torch.nn.LSTM has none", getattr(module, option))


def filled(copy: Torchs, module: nn.Module, weights: dict[str, Tensor | None]) -> Torchs:
    """Torch's module with these weights, and what requires gradients and the mode of ours."""
    copy.load_state_dict(
        {name: value for name, value in weights.items() if value is not None and "peephole" not in name}
    )
    for name, parameter in copy.named_parameters():
        parameter.requires_grad_(module.get_parameter(name).requires_grad)
    return copy.train(module.training)
