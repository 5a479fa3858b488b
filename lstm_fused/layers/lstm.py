"""`LSTM`: the parameters, layers and directions of torch.nn.LSTM, with peepholes and lengths."""

import warnings
from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_fused.backends import streams
from lstm_fused.checks import (
    States,
    check_input,
    check_lengths,
    check_packed,
    check_states,
)
from lstm_fused.contract import Variant
from lstm_fused.errors import bad
from lstm_fused.functional import run_layer
from lstm_fused.interop import graph, nn_lstm
from lstm_fused.layers import masks, parameters
from lstm_fused.layers.idioms import TorchIdioms
from lstm_fused.layers.options import WithOptions, check_combination, check_dtype
from lstm_fused.layers.parameters import Parameters


def states_of_layers(hx: States) -> list[States]:
    """h0 and c0 of each layer and direction."""
    h0, c0 = hx
    if len(h0) == 1:  # a view whose gradient is one, too
        return [(h0.squeeze(0), c0.squeeze(0))]
    return list(zip(h0.unbind(0), c0.unbind(0), strict=True))


class LSTM(TorchIdioms, WithOptions):
    """A drop-in for `torch.nn.LSTM` whose gates see the cell state through peepholes.

    `lstm_fused.reference` has the equations and their papers. Parameters have the names, shapes and order of
    torch.nn.LSTM, so that a ``state_dict`` loads in either with ``peephole=False``; peepholes add
    ``weight_peephole_l{k}{_reverse}`` of shape (3, hidden_size), rows p_i, p_f, p_o. All start uniform
    in ±1/sqrt(hidden_size). ``coupled`` removes the rows of i and p_i; ``layer_norm`` adds
    ``gain_ih_l{k}{_reverse}`` and ``gain_hh_…`` of shape (4 * hidden_size,), which start at 1.

    Args:
        input_size: features of each step, I.
        hidden_size: cells of each layer and direction, H.
        num_layers: layers, each over the outputs of the one before.
        bias: whether to add bias_ih and bias_hh.
        batch_first: input and output are (batch, T, features) rather than (T, batch, features).
        dropout: probability of zeroing an output between layers while training.
        bidirectional: add a second direction that runs from the last valid step to the first.
        proj_size: size P that h is projected to, less than hidden_size; 0 for no projection.
        device: device of the parameters.
        dtype: floating-point dtype of the parameters.
        peephole: whether the gates see the cell state.
        forget_bias: initial b_f, all of it in bias_ih; None draws it like the other parameters.
        coupled: couple the input gate to the forget gate, i = 1 - f: three gates, ordered f, g, o.
        layer_norm: normalize W_ih x_t and W_hh h_{t-1}, each over its 4H elements.
        recurrent_dropout: probability of zeroing an element of h, for all steps, in W_hh h_{t-1} in training.
        zoneout_h: probability that an element of h keeps its previous value; the share it keeps in eval mode.
        zoneout_c: the same for c.
        cell_clip: bound on the magnitude of c.
        engine: "cpp", "triton", "metal" or "reference", never replaced by another; None takes the best one.

    batch_first, dropout, recurrent_dropout, zoneout_h, zoneout_c, cell_clip and engine may be set later too;
    all options are checked whenever they are set.

    A state dict without peepholes, as of torch.nn.LSTM, loads with ``strict=False``: the peepholes of each
    layer and direction whose weights it contains become zero, and are among the ``missing_keys``.

    Raises:
        ArgumentError: a size is not a positive integer, proj_size ≥ hidden_size, a flag, probability, bound
            or engine is invalid, two options exclude each other, or a fixed option is changed.
            It is a ValueError and a RuntimeError; for a wrong type it is a TypeError too.

    Examples:
        >>> lstm = LSTM(28, 128, num_layers=2, batch_first=True)
        >>> output, (h_n, c_n) = lstm(torch.randn(3, 50, 28), lengths=torch.tensor([50, 7, 23]))
        >>> output.shape, h_n.shape, lstm.weight_peephole_l0.shape
        (torch.Size([3, 50, 128]), torch.Size([2, 3, 128]), torch.Size([3, 128]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = True,
        forget_bias: float | None = None,
        coupled: bool = False,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout_h: float = 0.0,
        zoneout_c: float = 0.0,
        cell_clip: float | None = None,
        engine: str | None = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.peephole = peephole
        self.forget_bias = forget_bias
        self.coupled = coupled
        self.layer_norm = layer_norm
        self.recurrent_dropout = recurrent_dropout
        self.zoneout_h = zoneout_h
        self.zoneout_c = zoneout_c
        self.cell_clip = cell_clip
        self.engine = engine
        # The attributes: setting them checked and converted the values.
        check_combination(
            self.hidden_size, self.proj_size, self.bias, self.forget_bias, self.coupled, self.layer_norm
        )
        check_dtype(dtype)
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                f"dropout={self.dropout} acts between layers, and there is only one: num_layers=1",
                stacklevel=2,
            )

        # By layer and suffix. Computed once: the options that they depend on are fixed.
        self._shapes = [self._shapes_of(layer) for layer in range(self.num_layers)]
        for directions in self._shapes:
            for shapes in directions.values():
                for name, shape in shapes.items():
                    if shape is not None:
                        parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                        self.register_parameter(name, parameter)
        self.reset_parameters()

    @classmethod
    def from_torch(
        cls, lstm: nn.LSTM | Mapping[str, Tensor], *, peephole: bool = True, engine: str | None = None
    ) -> Self:
        """Copy a torch.nn.LSTM; outputs stay the same, because peepholes start at zero.

        Args:
            lstm: the module to copy, with its parameters, options, device and mode; or its state dict, which
                tells neither batch_first nor dropout: set them on the result.
            peephole: whether to add peepholes.
            engine: as for `LSTM`.

        Raises:
            ArgumentError: this is neither a torch.nn.LSTM nor its state dict, or it is parametrized, pruned
                or of mixed dtypes.

        Examples:
            >>> old = torch.nn.LSTM(5, 7)
            >>> x = torch.randn(4, 3, 5)
            >>> torch.testing.assert_close(LSTM.from_torch(old)(x)[0], old(x)[0])
        """
        return nn_lstm.copy_of(cls, lstm, peephole, engine)

    def to_torch(self) -> nn.LSTM:
        """Copy this module into a torch.nn.LSTM; it must have no peepholes, or only zeros.

        Returns:
            The copy, with the parameters, options, device and mode of this module; coupled gates become four.

        Raises:
            ArgumentError: a peephole is not zero, a parameter is parametrized, or nn.LSTM lacks an option.
        """
        return nn_lstm.copy_to(self)

    @property
    def num_directions(self) -> int:
        """2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def reset_parameters(self) -> None:
        """Draw all parameters but gains and a forget_bias uniformly from ±1/sqrt(hidden_size)."""
        parameters.reset(self.named_parameters(), self.hidden_size, self.forget_bias, self.coupled)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: States | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, States]:
        """Run all layers and directions over whole sequences.

        Args:
            input: (T, B, I), or (B, T, I) with batch_first, or one sequence (T, I), or a PackedSequence.
            hx: initial states h_0 (num_layers * directions, B, P or H) and c_0 (…, B, H), without B for
                one sequence; zeros by default.
            lengths: valid steps of each sequence, from 0 to T, integers of shape (B,), on any device, in any
                order. Outputs past a length are zero, states are those of the last valid step, the reverse
                direction starts there, and a length of 0 keeps the initial states.

        Returns:
            The outputs, shaped as the input with P or H features for each direction, and the last states
            h_n and c_n, shaped as hx.

        Raises:
            ArgumentError: an argument has the wrong rank, size, dtype, device or value.
            RuntimeError: the engine cannot serve this device or dtype; the message says why.
        """
        if (proxy := graph.proxy_in(hx, input, lengths)) is not None:
            return graph.call_module(self, proxy, input, hx, lengths)  # type: ignore[no-any-return]
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths)
        check_input(
            input,
            (2, 3),
            "of 2 dimensions (T, input_size) or 3 "
            + ("(B, T, " if self.batch_first else "(T, B, ")
            + "input_size)",
            self.input_size,
        )
        single = input.dim() == 2
        x = input.unsqueeze(1) if single else input.transpose(0, 1) if self.batch_first else input
        if hx is not None:
            self._check_hx(hx, () if single else (x.shape[1],), input)
            if single:
                hx = hx[0].unsqueeze(1), hx[1].unsqueeze(1)
        y, (h_n, c_n) = self._run(x, hx, lengths)
        if single:
            return y.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return y.transpose(0, 1) if self.batch_first else y, (h_n, c_n)

    def _forward_packed(
        self, input: PackedSequence, hx: States | None, lengths: Tensor | None
    ) -> tuple[PackedSequence, States]:
        """Run over padded sequences in the packed order; states keep the user's order."""
        if (proxy := graph.proxy_in(None, *input)) is not None:
            return graph.call_module(self, proxy, input, hx, lengths)  # type: ignore[no-any-return]
        if lengths is not None:
            raise bad("lengths", "None with a PackedSequence, which contains lengths", "a tensor")
        check_packed(input)
        data, batch_sizes, order, back = input
        check_input(data, (2,), "a PackedSequence of data (steps, input_size)", self.input_size)
        if hx is not None:
            self._check_hx(hx, (int(batch_sizes[0]),), data)
            if order is not None:
                hx = hx[0].index_select(1, order), hx[1].index_select(1, order)
        x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        y, (h_n, c_n) = self._run(x, hx, lengths)
        if back is not None:
            h_n, c_n = h_n.index_select(1, back), c_n.index_select(1, back)
        return PackedSequence(pack_padded_sequence(y, lengths).data, batch_sizes, order, back), (h_n, c_n)

    def _run(self, x: Tensor, hx: States | None, lengths: Tensor | None) -> tuple[Tensor, States]:
        """Run all layers over x [T, B, I]; hx has one row for each layer and direction."""
        own: list[dict[str, Parameters]] = []
        for directions in self._shapes:
            own.append({suffix: self._own(shapes, x) for suffix, shapes in directions.items()})
        if lengths is not None:
            check_lengths(lengths, x.shape[1], x.shape[0])
            lengths = lengths.to(x.device)
        H, P = self.hidden_size, self.proj_size or self.hidden_size
        rates = self.recurrent_dropout, self.zoneout_h, self.zoneout_c
        initial = None if hx is None else states_of_layers(hx)
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        for layer, params_of in enumerate(own):
            if layer > 0 and self.dropout > 0:
                x = F.dropout(x, self.dropout, self.training)
            calls: list[tuple[Any, ...]] = []
            for suffix, params in params_of.items():
                h0_c0 = None if initial is None else initial[len(h_n) + len(calls)]
                p = parameters.uncoupled(params) if self.coupled else params
                variant = Variant.of(p.gain_hh, *masks.draw(x, P, H, *rates, self.training), self.cell_clip)
                calls.append((x, p, h0_c0, lengths, suffix.endswith("_reverse"), self.engine, variant))
            if len(calls) == 2 and streams.pay(self.engine, x, H, self.proj_size, variant, calls):
                results = streams.side_by_side(x.device, run_layer, *calls)
            else:
                results = [run_layer(*call) for call in calls]
            ys, states = zip(*results, strict=True)
            h_n += [h for h, _ in states]
            c_n += [c for _, c in states]
            x = ys[0] if len(ys) == 1 else torch.cat(ys, dim=-1)
        return x, (torch.stack(h_n), torch.stack(c_n))

    def _check_hx(self, hx: object, batch: tuple[int, ...], input: Tensor) -> None:
        rows, P = self.num_layers * self.num_directions, self.proj_size or self.hidden_size
        meaning = "(num_layers * directions, " + ("batch, " if batch else "")
        check_states(
            hx,
            ((rows, *batch, P), (rows, *batch, self.hidden_size)),
            (meaning + ("proj_size)" if self.proj_size else "hidden_size)"), meaning + "hidden_size)"),
            input,
        )

    def _suffixes(self, layer: int) -> list[str]:
        """The suffixes of the names of a layer's parameters, one for each direction."""
        return [f"l{layer}", f"l{layer}_reverse"][: self.num_directions]

    def _shapes_of(self, layer: int) -> dict[str, parameters.Shapes]:
        """The shapes of a layer's parameters, for each direction by suffix."""
        H, P = self.hidden_size, self.proj_size
        I = self.input_size if layer == 0 else (P or H) * self.num_directions
        flags = self.bias, self.peephole, self.coupled, self.layer_norm
        return {s: parameters.shapes(I, H, P, *flags, suffix=f"_{s}") for s in self._suffixes(layer)}

    def _parameters_of(self, suffix: str) -> Parameters:
        """The parameters of one layer in one direction, with coupled gates expanded to all four."""
        shapes = next(of[suffix] for of in self._shapes if suffix in of)
        return parameters.read(self, shapes, self.coupled)
