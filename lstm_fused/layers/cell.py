"""`LSTMCell`: runs one step at a time, with the engines of `LSTM`."""

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lstm_fused.autograd import autocast, tracing
from lstm_fused.backends.table import CPP
from lstm_fused.checks import States, check_input, check_states
from lstm_fused.contract import Variant
from lstm_fused.functional import run_layer
from lstm_fused.interop import graph, nn_lstm
from lstm_fused.layers import masks, parameters
from lstm_fused.layers.options import OPTIONS, WithOptions, check_combination, check_dtype
from lstm_fused.layers.parameters import Parameters


class LSTMCell(WithOptions):
    """A drop-in for `torch.nn.LSTMCell` whose gates see the cell state through a peephole.

    `lstm_fused.reference` has the equations. Parameters are those of torch.nn.LSTMCell, and
    ``weight_peephole`` of shape (3, hidden_size), rows p_i, p_f, p_o; all start uniform in
    ±1/sqrt(hidden_size). ``coupled`` and ``layer_norm`` change them as they do in `lstm_fused.LSTM`.
    There is no recurrent dropout, because its mask belongs to a sequence.

    Args:
        input_size: features of the input, I.
        hidden_size: cells, H.
        bias: whether to add bias_ih and bias_hh.
        device: device of the parameters.
        dtype: floating-point dtype of the parameters.
        peephole: whether the gates see the cell state.
        forget_bias: as for `lstm_fused.LSTM`, like all options below.
        coupled: whether i = 1 - f.
        layer_norm: whether to normalize W_ih x and W_hh h.
        zoneout_h: probability that an element of h keeps its previous value.
        zoneout_c: the same for c.
        cell_clip: bound on the magnitude of c.
        engine: which engine to use.

    Raises:
        ArgumentError: as for `lstm_fused.LSTM`.

    Examples:
        >>> cell = LSTMCell(28, 64)
        >>> h, c = cell(torch.randn(3, 28))
        >>> h, c = cell(torch.randn(3, 28), (h, c))
    """

    _options: ClassVar = {
        name: OPTIONS[name]
        for name in (
            *("input_size", "hidden_size", "bias", "peephole", "forget_bias", "coupled", "layer_norm"),
            *("zoneout_h", "zoneout_c", "cell_clip", "engine"),
        )
    }
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_peephole: Tensor | None
    gain_ih: Tensor | None
    gain_hh: Tensor | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = True,
        forget_bias: float | None = None,
        coupled: bool = False,
        layer_norm: bool = False,
        zoneout_h: float = 0.0,
        zoneout_c: float = 0.0,
        cell_clip: float | None = None,
        engine: str | None = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.peephole = peephole
        self.forget_bias = forget_bias
        self.coupled = coupled
        self.layer_norm = layer_norm
        self.zoneout_h = zoneout_h
        self.zoneout_c = zoneout_c
        self.cell_clip = cell_clip
        self.engine = engine
        check_combination(self.hidden_size, 0, self.bias, self.forget_bias, self.coupled, self.layer_norm)
        check_dtype(dtype)
        flags = self.bias, self.peephole, self.coupled, self.layer_norm
        # Computed once: the options that it depends on are fixed.
        self._shapes = parameters.shapes(self.input_size, self.hidden_size, 0, *flags)
        for name, shape in self._shapes.items():
            if name == "weight_hr":
                continue
            value = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, value)
        self.reset_parameters()

    @classmethod
    def from_torch(cls, cell: nn.LSTMCell, *, peephole: bool = True, engine: str | None = None) -> Self:
        """Copy a torch.nn.LSTMCell; states stay the same, because the peephole starts at zero.

        Args:
            cell: the module to copy, with its parameters, options, device and mode.
            peephole: whether to add a peephole.
            engine: as for `lstm_fused.LSTM`.

        Raises:
            ArgumentError: this is not a torch.nn.LSTMCell, or it is parametrized, pruned or of mixed dtypes.
        """
        return nn_lstm.copy_of_cell(cls, cell, peephole, engine)

    def to_torch(self) -> nn.LSTMCell:
        """Copy this module into a torch.nn.LSTMCell; it must have no peephole, or only zeros.

        Returns:
            The copy, with the parameters, options, device and mode of this module; coupled gates become four.

        Raises:
            ArgumentError: a peephole is not zero, a parameter is parametrized, or torch lacks an option.
        """
        return nn_lstm.copy_to_cell(self)

    def reset_parameters(self) -> None:
        """Draw all parameters but gains and a forget_bias uniformly from ±1/sqrt(hidden_size)."""
        parameters.reset(self.named_parameters(), self.hidden_size, self.forget_bias, self.coupled)

    def forward(self, input: Tensor, hx: States | None = None) -> States:
        """Take one step.

        Args:
            input: (B, I), or (I,) for one sequence.
            hx: the previous states h and c, each of shape (B, H) or (H,); zeros by default.

        Returns:
            The new states h and c, shaped as hx. Under autocast they have the dtype that torch.nn.LSTMCell
            gives them, on a CPU autocast's promoted to that of the previous c, or of input without hx, so
            float32 as a rule, elsewhere autocast's.

        Raises:
            ArgumentError: an argument has the wrong rank, size, dtype or device.
            RuntimeError: the engine cannot serve this device or dtype; the message says why.
        """
        if (proxy := graph.proxy_in(hx, input)) is not None:
            return graph.call_module(self, proxy, input, hx)  # type: ignore[no-any-return]
        # The C++ engine checks all that it gets, and checks in Python take a third as long as the step. So
        # they only follow if it refuses: they name the argument and what was expected.
        if isinstance(hx, (tuple, list)) and self._engine_checks(input):
            try:
                return self._step(input, hx, self._held(self._shapes))
            except (RuntimeError, TypeError, ValueError, AttributeError) as error:
                failure = error
            try:
                self._check(input, hx)
                raise failure
            finally:
                del failure  # its traceback holds this frame
        return self._step(input, hx, self._check(input, hx))

    def _engine_checks(self, input: Tensor) -> bool:
        """True if the C++ engine runs without any change of its arguments, so that it sees their faults."""
        return (
            type(input) is Tensor
            and input.is_cpu
            and (self.engine is None or self.engine == "cpp")
            and not (self.coupled or self.layer_norm)
            and not (tracing.watched() or autocast.enabled(input.device))
            and CPP.serves(input.device, input.dtype)
            # With this shape the others follow from one another.
            and getattr(self._parameters.get("weight_ih"), "shape", None) == self._shapes["weight_ih"]
        )

    def _check(self, input: Tensor, hx: States | None) -> Parameters:
        """Check the arguments and the parameters; returns these."""
        check_input(input, (1, 2), "of 1 dimension (input_size,) or 2 (B, input_size)", self.input_size)
        if hx is not None:
            shape = (*input.shape[:-1], self.hidden_size)
            meaning = "(hidden_size,)" if input.dim() == 1 else "(B, hidden_size)"
            check_states(hx, (shape, shape), (meaning, meaning), input)
        return self._own(self._shapes, input)

    def _step(self, input: Tensor, hx: States | None, own: Parameters) -> States:
        """Take a step with these parameters."""
        single = input.dim() == 1
        if single and hx is not None:
            h0, c0 = hx
            hx = h0.unsqueeze(0), c0.unsqueeze(0)
        own = parameters.uncoupled(own) if self.coupled else own
        x, H = input[None, None] if single else input[None], self.hidden_size
        drawn = masks.draw(x, H, H, 0.0, self.zoneout_h, self.zoneout_c, self.training)
        variant = Variant.of(own.gain_hh, *drawn, self.cell_clip)
        _, (h, c) = run_layer(x, own, hx, None, False, self.engine, variant)
        kept = input.dtype if hx is None else hx[1].dtype
        if h.dtype != kept and input.device.type == "cpu":  # under autocast, as torch.nn.LSTMCell
            kept = torch.promote_types(h.dtype, kept)
            h, c = h.to(kept), c.to(kept)
        return (h.squeeze(0), c.squeeze(0)) if single else (h, c)

    def _parameters_of(self) -> Parameters:
        """The parameters as engines take them, with coupled gates expanded to all four."""
        return parameters.read(self, self._shapes, self.coupled)
