"""Conversion from and to torch.nn.LSTM."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from lstm_fused.checks import check_torch
from lstm_fused.errors import bad

if TYPE_CHECKING:
    from lstm_fused.layers.lstm import LSTM

Ours = TypeVar("Ours", bound="LSTM")
PLAIN = "plain parameters, not parametrized, weight-normed or pruned ones"


def copy_of(
    cls: type[Ours], lstm: nn.LSTM | Mapping[str, Tensor], peephole: bool, engine: str | None
) -> Ours:
    """`LSTM.from_torch`."""
    if isinstance(lstm, Mapping):
        lstm = from_state_dict(lstm)
    check_torch(lstm)
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
    weights = lstm.state_dict()
    plain = {name for name in module.state_dict() if "peephole" not in name}
    if odd := ", ".join(sorted(plain ^ weights.keys())):
        raise bad("lstm", PLAIN, odd)
    for name, own in module.state_dict().items():
        if "peephole" in name:
            weights[name] = torch.zeros_like(own)
    module.load_state_dict(weights)
    for name, own in module.named_parameters():
        if "peephole" not in name:
            own.requires_grad_(lstm.get_parameter(name).requires_grad)
    return module.train(lstm.training)


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
        lstm = nn.LSTM(first.shape[1], len(first) // 4, **sizes, device="meta", dtype=first.dtype)
        lstm.load_state_dict(weights, assign=True)
    except (ValueError, RuntimeError) as error:  # of sizes, of names
        reason = " ".join(str(error).split())
        raise bad("lstm", "the state dict of a torch.nn.LSTM", f"another: {reason}") from None
    return lstm


def shown_names(names: str) -> str:
    """The names of a state dict, the first ones of many."""
    return names if len(names) <= 100 else f"{names[:96]} ..."


def copy_to(module: "LSTM") -> nn.LSTM:
    """`LSTM.to_torch`."""
    for name, value in module.named_parameters():
        if "." in name or name.endswith(("_orig", "_g", "_v")):
            raise bad(name, PLAIN, "this")
        if "peephole" in name and value.any():
            raise bad(name, "zeros, because torch.nn.LSTM has no peepholes", f"up to {value.abs().max():.3g}")
    for option in ("layer_norm", "recurrent_dropout", "zoneout_h", "zoneout_c", "cell_clip"):
        if getattr(module, option):
            raise bad(option, "none, as torch.nn.LSTM has none", getattr(module, option))
    parameter = module.get_parameter("weight_ih_l0")
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
    weights = {
        f"{name}_{suffix}": value
        for layer in range(module.num_layers)
        for suffix in module._suffixes(layer)
        for name, value in module._parameters_of(suffix)._asdict().items()
        if value is not None and name != "peephole"
    }
    lstm.load_state_dict(weights)
    for name, copy in lstm.named_parameters():
        copy.requires_grad_(module.get_parameter(name).requires_grad)
    return lstm.train(module.training)
