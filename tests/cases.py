"""The cases every engine is tested on, as data; the benchmarks take theirs from here too."""

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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


PLAIN = Case("plain")
UNEVEN = (40, 63, 0)

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
    Case("just_past_a_vector", T=7, B=17, I=31, H=33),
    Case("many_rows", T=5, B=131, I=9, H=19),
    Case("many_rows_lengths_reverse", T=3, B=70, I=9, H=19, lengths=(0, 1, 2, 3, 3) * 14, reverse=True),
    Case("many_channels", T=3, B=5, I=40, H=261),
    Case("wide_input", T=3, B=4, I=300, H=18),
)

NAMES = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole", "weight_hr", "h0", "c0")


def make_lengths(case: Case, device: str = DEVICE) -> Tensor | None:
    """The lengths of a case, as operators take them."""
    return None if case.lengths is None else torch.tensor(case.lengths, device=device)


def make_tensors(
    case: Case, dtype: torch.dtype, seed: int = 0, device: str = DEVICE
) -> dict[str, Tensor | None]:
    """The differentiable inputs of a case, by name; the same numbers everywhere but for rounding."""
    T, B, I, H, P = case.T, case.B, case.I, case.H, case.P or case.H
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        # Exact in every dtype, so that all see one problem.
        values = values.to(torch.bfloat16).to(device, dtype)
        if case.layout == "strided":
            spaced = values.new_full((*(2 * n for n in shape),), torch.nan)
            spaced[tuple(slice(None, None, 2) for _ in shape)] = values
            return spaced[tuple(slice(None, None, 2) for _ in shape)]
        if case.layout == "expanded":
            return values[:1].expand(shape)
        return values

    scale = 0.5 * H**-0.5
    return {
        "x": draw(T, B, I, scale=1.0),
        "weight_ih": draw(4 * H, I, scale=0.5 * I**-0.5),
        "weight_hh": draw(4 * H, P, scale=scale),
        "bias_ih": draw(4 * H, scale=scale) if case.bias else None,
        "bias_hh": draw(4 * H, scale=scale) if case.bias else None,
        "peephole": draw(3 * H, scale=0.5) if case.peephole else None,
        "weight_hr": draw(P, H, scale=scale) if case.P else None,
        "h0": draw(B, P, scale=0.5) if case.states else None,
        "c0": draw(B, H, scale=1.0) if case.states else None,
    }
