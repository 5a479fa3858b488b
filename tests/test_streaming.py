"""Sequences in pieces, single steps or chunks with carried states, equal the whole sequence."""

import re
from pathlib import Path

import pytest
import torch
from harness import ENGINES_HERE

from lstm_fused import LSTM, LSTMCell

ALL = [engine.name for engine in ENGINES_HERE]
SIZES = [(1, 5, 7), (3, 13, 37), (5, 20, 32), (17, 31, 33), (64, 28, 128)]  # B, I, H
each_engine = pytest.mark.parametrize("engine", ALL)
each_size = pytest.mark.parametrize(("B", "I", "H"), SIZES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def same(pieces, whole):
    """Check for equal bits in float64, for equality up to rounding in float32."""
    if whole.dtype == torch.float64:
        assert torch.equal(pieces, whole), f"off by {(pieces - whole).abs().max():.3g}"
    else:
        torch.testing.assert_close(pieces, whole)


@each_engine
@each_size
@each_dtype
def test_steps_of_a_cell_equal_the_sequence(engine, B, I, H, dtype):
    torch.manual_seed(0)
    cell, layer = LSTMCell(I, H, dtype=dtype, engine=engine), LSTM(I, H, dtype=dtype, engine=engine)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x = torch.randn(9, B, I, dtype=dtype)
    with torch.no_grad():
        whole, (h_n, c_n) = layer(x)
        hx, steps = None, []
        for x_t in x:
            hx = cell(x_t.clone(), hx)
            steps.append(hx[0])
    same(torch.stack(steps), whole)
    same(hx[0], h_n[0])
    same(hx[1], c_n[0])


@each_engine
@each_size
@each_dtype
def test_chunks_equal_the_sequence(engine, B, I, H, dtype):
    torch.manual_seed(0)
    lstm = LSTM(I, H, 2, proj_size=4, dtype=dtype, engine=engine)
    x = torch.randn(12, B, I, dtype=dtype)
    with torch.no_grad():
        whole, states = lstm(x)
        hx, chunks = None, []
        for chunk in x.split((1, 4, 7)):
            y, hx = lstm(chunk.clone(), hx)
            chunks.append(y)
    same(torch.cat(chunks), whole)
    for piece, end in zip(hx, states, strict=True):
        same(piece, end)


def test_the_documented_recipes_run_and_learn():
    text = (Path(__file__).parents[1] / "docs" / "streaming.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    torch.manual_seed(0)
    exec(blocks[0], names)
    whole, states = names["lstm"](names["sequence"])
    torch.testing.assert_close(names["output"], whole[-100:])
    torch.testing.assert_close(names["states"], states)
    before = [p.clone() for p in names["lstm"].parameters()]
    exec(blocks[1], names)
    assert not any(state.requires_grad for state in names["states"])
    assert not any(map(torch.equal, names["lstm"].parameters(), before))
