"""What code written for `torch.nn.LSTM` reads from the module, for `LSTM`, which does not derive from it.

TorchDynamo refuses modules that are instances of `torch.nn.LSTM` (tests/test_idioms.py shows it), and
`torch.nn.RNNBase` keeps a second list of the weights, which its setters, copies and pickles maintain. So
`LSTM` derives from neither.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lstm_fused.errors import bad, bad_type
from lstm_fused.layers import parameters


class TorchIdioms:
    """The attributes and methods of `torch.nn.LSTM` beyond its options, computed from the parameters."""

    # TorchScript would compile every property, when tracing too.
    __jit_unused_properties__: ClassVar = [
        *("all_weights", "_all_weights", "_flat_weights", "_flat_weights_names"),
    ]
    _shapes: list[dict[str, parameters.Shapes]]
    mode = "LSTM"

    # Methods of nn.LSTM that read its options and nothing else.
    check_input: Any = nn.LSTM.check_input
    check_hidden_size: Any = nn.LSTM.check_hidden_size
    check_forward_args: Any = nn.LSTM.check_forward_args
    get_expected_hidden_size: Any = nn.LSTM.get_expected_hidden_size
    get_expected_cell_size: Any = nn.LSTM.get_expected_cell_size
    permute_hidden: Any = nn.LSTM.permute_hidden

    def flatten_parameters(self) -> None:
        """Do nothing: there is no flat copy of the weights. Callers of torch.nn.LSTM may call this."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction, in the order of a state dict.

        The first ones are those of torch.nn.LSTM, in its order; peepholes and gains follow.
        """
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _all_weights(self) -> list[list[str]]:
        """The names of `all_weights`."""
        return [
            [name for name, shape in shapes.items() if shape is not None]
            for directions in self._shapes
            for shapes in directions.values()
        ]

    @property
    def _flat_weights(self) -> list[Tensor]:
        """`all_weights` in one list."""
        return [weight for weights in self.all_weights for weight in weights]

    @_flat_weights.setter
    def _flat_weights(self, weights: Sequence[Tensor]) -> None:
        """Register the parameters among these tensors that are not yet the attributes of their names.

        torch.nn.LSTM computes with this list, but this layer with its attributes.
        """
        names = self._flat_weights_names
        if len(weights) != len(names):
            raise bad("_flat_weights", f"{len(names)} tensors, of {', '.join(names)}", len(weights))
        pairs = zip(names, weights, strict=True)
        new = {name: weight for name, weight in pairs if weight is not getattr(self, name, None)}
        for name, weight in new.items():
            if not isinstance(weight, nn.Parameter):
                raise bad_type(
                    "_flat_weights", f"the attribute {name}, or a parameter", type(weight).__name__
                )
        for name, weight in new.items():
            setattr(self, name, weight)

    @property
    def _flat_weights_names(self) -> list[str]:
        """The names of `_flat_weights`."""
        return [name for names in self._all_weights for name in names]
