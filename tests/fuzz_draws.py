"""Random calls for the search: a draw is a function of its seed and number."""

import random
from dataclasses import dataclass, fields
from typing import Any

import torch

from lstm_fused.backends.table import ENGINES


@dataclass(frozen=True)
class Draw:
    """One random call."""

    kind: str  # LSTM, LSTMCell or lstm
    engine: str | None
    dtype: torch.dtype
    T: int
    B: int
    I: int
    H: int
    P: int = 0
    num_layers: int = 1
    bidirectional: bool = False
    reverse: bool = False
    bias: bool = True
    peephole: bool = True
    coupled: bool = False
    layer_norm: bool = False
    forget_bias: float | None = None
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    recurrent_dropout: float = 0.0
    dropout: float = 0.0
    cell_clip: float | None = None
    batch_first: bool = False
    given: str = "padded"  # or single, packed, packed_unsorted
    lengths: tuple[int, ...] | None = None
    lengths_dtype: torch.dtype = torch.int64
    states: bool = True
    layout: str = "contiguous"  # or strided, expanded, transposed
    transform: str | None = None  # or vmap, jvp

    def __str__(self) -> str:
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in changed).replace("torch.", "")


def draw(seed: int, n: int) -> tuple[Draw, torch.Generator]:
    """Return the n-th draw of a seed and a generator for its tensors."""
    r = random.Random(f"{seed}/{n}")

    def often(p: float) -> bool:
        return r.random() < p

    kind = r.choices(("LSTM", "LSTMCell", "lstm"), (8, 1, 2))[0]
    here = [e for e in ENGINES if not e.why_not(torch.device("cpu"), torch.float32)]
    engine = r.choice(here)
    dtype = r.choices((torch.float64, torch.float32, torch.bfloat16), (6, 2, 1))[0]
    # Small sizes are fast, so the search makes many draws; larger ones cross the ends of vectors and tiles.
    H = r.choice((1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33)) if often(0.9) else r.randint(1, 70)
    I = r.choice((1, 2, 3, 5, 8, 17)) if often(0.95) else r.randint(1, 60)
    T = r.choice((0, 1, 2, 3, 4, 5, 6, 8)) if often(0.95) else r.randint(9, 30)
    B = r.choice((0, 1, 2, 3, 4, 5, 6)) if often(0.9) else r.randint(7, 40)
    if kind == "LSTMCell":
        T = 1
    P = r.randint(1, H - 1) if H > 1 and kind != "LSTMCell" and often(0.3) else 0
    bias, layer_norm = often(0.8), often(0.2)
    coupled = kind != "lstm" and not layer_norm and often(0.2)
    num_layers = r.choice((1, 1, 2, 3)) if kind == "LSTM" else 1
    given = "padded"
    if kind == "LSTM":
        given = r.choices(("padded", "single", "packed", "packed_unsorted"), (6, 1, 2, 2))[0]
    elif kind == "LSTMCell" and often(0.2):
        given = "single"
    lengths = None
    if given == "single":
        B = 1
    elif given.startswith("packed"):
        T, B = max(T, 1), max(B, 1)
        found = [r.randint(1, T) for _ in range(B - 1)] + [T]
        r.shuffle(found)
        lengths = tuple(found if given == "packed_unsorted" else sorted(found, reverse=True))
    elif kind != "LSTMCell" and often(0.5):
        lengths = tuple(r.choice((0, T, r.randint(0, T))) for _ in range(B))
    transform = None
    if given == "padded" and kind == "LSTM" and B > 0 and T > 0 and dtype == torch.float64:
        transform = r.choices((None, "vmap", "jvp"), (4, 1, 2))[0]
    more: dict[str, Any] = {}
    if kind != "lstm":
        more["forget_bias"] = r.choice((None, 1.0, -0.5)) if bias else None
    return Draw(
        kind,
        r.choice((engine.name, engine.name, None)),
        dtype,
        T,
        B,
        I,
        H,
        P,
        num_layers,
        bidirectional=kind == "LSTM" and often(0.4),
        reverse=kind == "lstm" and often(0.5),
        bias=bias,
        peephole=often(0.7),
        coupled=coupled,
        layer_norm=layer_norm,
        zoneout_h=r.choice((0.0, 0.0, 0.0, 0.3, 1.0)),
        zoneout_c=r.choice((0.0, 0.0, 0.0, 0.6, 1.0)),
        recurrent_dropout=r.choice((0.0, 0.0, 0.5)) if kind != "LSTMCell" else 0.0,
        dropout=0.4 if num_layers > 1 and often(0.2) else 0.0,
        cell_clip=r.choice((None, None, None, 0.3, 2.0)),
        batch_first=kind == "LSTM" and often(0.4),
        given=given,
        lengths=lengths,
        lengths_dtype=r.choice((torch.int64, torch.int32, torch.uint8)),
        states=often(0.6),
        layout=r.choice(("contiguous", "contiguous", "strided", "expanded", "transposed")),
        transform=transform,
        **more,
    ), torch.Generator().manual_seed(r.getrandbits(60))
