"""The cases that every engine is tested on, as data; the benchmarks use them too."""

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lstm_fused.contract import Inputs, Outputs, Saved

DEVICE = os.environ.get("LSTM_FUSED_TEST_DEVICE", "cpu")  # pytest --device sets it


@dataclass(frozen=True)
class Case:
    """One layer in one direction."""

    name: str
    T: int = 63
    B: int = 3
    I: int = 13
    H: int = 37
    P: int = 0  # 0: no projection
    bias: bool = True
    peephole: bool = True
    states: bool = True  # whether h0 and c0 are given
    lengths: tuple[int, ...] | None = None
    reverse: bool = False
    layout: str = "contiguous"  # or "strided", "expanded"
    fine: bool = False  # values with all 24 significant bits of float32; else 8, exact in every dtype
    recurrent_dropout: bool = False
    zoneout_h: bool = False
    zoneout_c: bool = False
    cell_clip: float | None = None
    layer_norm: bool = False

    @property
    def varied(self) -> bool:
        """Whether the case uses a variant of the recurrence."""
        masks = self.recurrent_dropout or self.zoneout_h or self.zoneout_c
        return masks or self.layer_norm or self.cell_clip is not None


PLAIN = Case("plain")
UNEVEN = (40, 63, 0)
ZONEOUT = replace(PLAIN, name="zoneout", zoneout_h=True, zoneout_c=True)
EVERY_VARIANT = replace(ZONEOUT, name="every_variant", recurrent_dropout=True, cell_clip=0.7, layer_norm=True)
NORM = replace(PLAIN, name="layer_norm", layer_norm=True)

CASES = (
    Case("one_of_everything", T=1, B=1, I=1, H=1),
    Case("one_step", T=1, B=3, I=5, H=7),
    Case("two_steps", T=2, B=1, I=3, H=5),
    Case("no_steps", T=0, B=3, I=5, H=7),
    Case("empty_batch", T=4, B=0, I=5, H=7),
    Case("no_steps_reverse_lengths", T=0, B=2, I=5, H=7, reverse=True, lengths=(0, 0)),
    Case("all_lengths_zero", T=4, B=2, I=5, H=7, lengths=(0, 0)),
    PLAIN,
    replace(PLAIN, name="no_bias", bias=False),
    replace(PLAIN, name="no_peephole", peephole=False),
    replace(PLAIN, name="no_bias_no_peephole", bias=False, peephole=False),
    replace(PLAIN, name="no_states", states=False),
    replace(PLAIN, name="reverse", reverse=True),
    replace(PLAIN, name="lengths", lengths=UNEVEN),
    replace(PLAIN, name="lengths_reverse", lengths=UNEVEN, reverse=True),
    replace(PLAIN, name="lengths_nearly_whole", T=9, lengths=(9, 7, 8)),
    replace(PLAIN, name="lengths_nearly_whole_reverse", T=9, lengths=(9, 7, 8), reverse=True),
    replace(PLAIN, name="projection", P=11),
    replace(PLAIN, name="projection_reverse", P=11, reverse=True),
    replace(PLAIN, name="projection_lengths", P=11, lengths=UNEVEN),
    replace(PLAIN, name="projection_lengths_reverse_no_bias", P=1, lengths=UNEVEN, reverse=True, bias=False),
    replace(PLAIN, name="strided", layout="strided"),
    replace(PLAIN, name="strided_projection_lengths", layout="strided", P=11, lengths=UNEVEN),
    replace(PLAIN, name="expanded", layout="expanded"),
    Case("one_channel", T=5, B=4, I=2, H=1),
    Case("one_row", T=20, B=1, I=33, H=65),
    Case("whole_vectors", T=7, B=16, I=32, H=64),
    Case("one_step_whole_vectors", T=1, B=3, I=64, H=64),
    Case("few_rows_lengths_reverse", T=4, B=3, I=64, H=64, lengths=(4, 0, 2), reverse=True),
    Case("few_rows_projection", T=3, B=4, I=29, H=64, P=32),
    Case("just_past_a_vector", T=7, B=17, I=31, H=33),
    Case("many_rows", T=5, B=131, I=9, H=19),
    Case("many_rows_lengths_reverse", T=3, B=70, I=9, H=19, lengths=(0, 1, 2, 3, 3) * 14, reverse=True),
    Case("many_channels", T=3, B=5, I=40, H=261),
    Case("wide_input", T=3, B=4, I=300, H=18),
)

# Variants of the recurrence.
VARIANTS = (
    replace(PLAIN, name="recurrent_dropout", recurrent_dropout=True),
    replace(PLAIN, name="recurrent_dropout_projection_lengths", recurrent_dropout=True, P=11, lengths=UNEVEN),
    ZONEOUT,
    replace(PLAIN, name="zoneout_h", zoneout_h=True),
    replace(PLAIN, name="zoneout_c_reverse_no_states", zoneout_c=True, reverse=True, states=False),
    replace(ZONEOUT, name="zoneout_lengths_reverse", lengths=UNEVEN, reverse=True),
    replace(ZONEOUT, name="zoneout_projection_lengths", P=11, lengths=UNEVEN),
    replace(
        ZONEOUT, name="zoneout_projection_lengths_reverse", T=40, P=11, lengths=(25, 40, 0), reverse=True
    ),
    replace(ZONEOUT, name="zoneout_expanded", layout="expanded"),
    replace(ZONEOUT, name="zoneout_strided", layout="strided"),
    replace(PLAIN, name="cell_clip", cell_clip=0.5),
    replace(ZONEOUT, name="cell_clip_zoneout_no_peephole", cell_clip=0.5, peephole=False),
    NORM,
    replace(NORM, name="layer_norm_no_bias_reverse", bias=False, reverse=True),
    replace(NORM, name="layer_norm_lengths_reverse", lengths=UNEVEN, reverse=True),
    replace(NORM, name="layer_norm_projection_lengths", P=11, lengths=UNEVEN),
    EVERY_VARIANT,
    replace(
        EVERY_VARIANT, name="every_variant_projection_lengths_reverse", P=11, lengths=UNEVEN, reverse=True
    ),
    replace(
        EVERY_VARIANT, name="every_variant_many_rows", T=5, B=131, H=19, lengths=(0, 1, 2, 5) * 32 + (3,) * 3
    ),
    replace(EVERY_VARIANT, name="every_variant_one_row", T=20, B=1, I=33, H=65),
    replace(EVERY_VARIANT, name="every_variant_one_channel", T=5, B=4, I=2, H=1),
    replace(EVERY_VARIANT, name="every_variant_many_channels", T=3, B=5, I=4, H=261),
    replace(EVERY_VARIANT, name="every_variant_no_steps", T=0, B=3, I=5, H=7),
    replace(EVERY_VARIANT, name="every_variant_empty_batch", T=4, B=0, I=5, H=7),
)

# Values with 24 significant bits: with those that are exact in bfloat16, products would be exact in float32.
FINE = Case("fine", T=40, B=35, I=20, H=37, fine=True)
GAPS = (*range(0, 40, 2), *range(40, 25, -1))
FINE_CASES = (
    FINE,
    replace(FINE, name="fine_reverse", reverse=True),
    replace(FINE, name="fine_lengths_reverse", lengths=GAPS, reverse=True),
    replace(FINE, name="fine_projection_lengths", P=33, lengths=GAPS),
    replace(FINE, name="fine_strided", layout="strided"),
    replace(FINE, name="fine_short", T=6),
    replace(FINE, name="fine_long_sums", T=8, B=24, H=260, lengths=(*range(8), *range(8, 0, -1), *range(8))),
    replace(FINE, name="fine_few_rows", T=200, B=5, I=9, H=19),
    replace(FINE, name="fine_whole_vectors", T=30, B=32, I=64, H=64),
    replace(EVERY_VARIANT, name="fine_every_variant", T=40, B=35, lengths=GAPS, fine=True),
    replace(ZONEOUT, name="fine_zoneout_projection", T=40, B=35, P=33, recurrent_dropout=True, fine=True),
)

# The sizes of the benchmarks; the tests run them over fewer steps.
TIMED = (
    Case("mnist", T=28, B=64, I=28, H=128),
    Case("mid", T=100, B=32, I=128, H=256),
    Case("long", T=512, B=16, I=256, H=512),
    Case("ptb", T=35, B=20, I=650, H=650),
    Case("stream", T=256, B=1, I=256, H=256),
    Case("wide", T=128, B=256, I=64, H=64),
    Case("big", T=64, B=64, I=1024, H=1024),
)


def shortened(case: Case, T: int) -> Case:
    """Return the case with at most T steps."""
    lengths = None if case.lengths is None else tuple(min(length, T) for length in case.lengths)
    return replace(case, T=min(case.T, T), lengths=lengths)


NAMES = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole", "weight_hr", "h0", "c0")
GAINS = ("gain_ih", "gain_hh")


def make_lengths(case: Case, device: str = DEVICE) -> Tensor | None:
    """Return the lengths of a case as the operators take them."""
    return None if case.lengths is None else torch.tensor(case.lengths, device=device)


def make_tensors(
    case: Case, dtype: torch.dtype, seed: int = 0, device: str = DEVICE, perturbation: int = 0
) -> dict[str, Tensor | None]:
    """Return the differentiable inputs of a case by name; a seed gives the same values in every dtype.

    A nonzero ``perturbation`` seeds a relative change of 2**-7 of two thirds of the values.
    """
    T, B, I, H, P = case.T, case.B, case.I, case.H, case.P or case.H
    generator, changes = (torch.Generator().manual_seed(n) for n in (seed, perturbation))

    def draw(*shape: int, scale: float) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") * scale
        if perturbation:
            values *= 1 + 2**-7 * torch.randint(-1, 2, shape, generator=changes, device="cpu")
        # Exact in every dtype, so that all dtypes solve the same problem.
        values = values.to(torch.float32 if case.fine else torch.bfloat16).to(device, dtype)
        if case.layout == "strided":
            spaced = values.new_full((*(2 * n for n in shape),), torch.nan)
            spaced[tuple(slice(None, None, 2) for _ in shape)] = values
            return spaced[tuple(slice(None, None, 2) for _ in shape)]
        if case.layout == "expanded":
            return values[:1].expand(shape)
        return values

    scale = 0.5 * H**-0.5
    tensors = {
        "x": draw(T, B, I, scale=1.0),
        "weight_ih": draw(4 * H, I, scale=0.5 * I**-0.5),
        "weight_hh": draw(4 * H, P, scale=scale),
        "bias_ih": draw(4 * H, scale=scale) if case.bias else None,
        "bias_hh": draw(4 * H, scale=scale) if case.bias else None,
        "peephole": draw(3, H, scale=0.5) if case.peephole else None,
        "weight_hr": draw(P, H, scale=scale) if case.P else None,
        "h0": draw(B, P, scale=0.5) if case.states else None,
        "c0": draw(B, H, scale=1.0) if case.states else None,
    }
    if case.layer_norm:
        tensors |= {"gain_ih": draw(4 * H, scale=1.0), "gain_hh": draw(4 * H, scale=0.5)}
    return tensors


def layer_inputs(
    t: dict[str, Tensor | None], lengths: Tensor | None = None, reverse: bool = False, save: bool = True
) -> Inputs:
    """What an engine takes, of tensors by name."""
    return Inputs(*(t[name] for name in NAMES), lengths, reverse, save)


def layer_saved(inputs: Inputs, out: Outputs) -> Saved:
    """What an engine's backward pass takes, without layer norm."""
    weights = inputs.weight_hh, inputs.peephole, inputs.weight_hr
    return Saved(out.c, out.gates, inputs.c0, *weights, inputs.lengths, inputs.reverse, inputs.variant)


def make_masks(
    case: Case, dtype: torch.dtype, seed: int = 0, device: str = DEVICE
) -> dict[str, Tensor | None]:
    """Return the masks of recurrent dropout and zoneout of a case: values in [0, 1], the ends included."""
    T, B, H, P = case.T, case.B, case.H, case.P or case.H
    generator = torch.Generator().manual_seed(seed + 2000)

    def draw(*shape: int) -> Tensor:
        values = (2 * torch.rand(shape, generator=generator, device="cpu") - 0.5).clamp(0, 1)
        values = values.to(torch.bfloat16).to(device, dtype)
        if case.layout == "expanded":
            return values[:1, :1].expand(shape)
        return values.mT.contiguous().mT if case.layout == "strided" else values

    return {
        "h_mask": 1.25 * draw(B, P).round() if case.recurrent_dropout else None,
        "zoneout_h": draw(T, B, P) if case.zoneout_h else None,
        "zoneout_c": draw(T, B, H) if case.zoneout_c else None,
    }
