"""The backward pass and its products in one call, which may form those of every block of steps at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_products import check, each_dtype
from torch.library import opcheck

from lstm_fused.autograd.operators import backward_op, forward_op, gradients_op
from lstm_fused.backends import cpp
from lstm_fused.contract import Factors, InputGradients

if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)

# T, B, I, H. Register tiles have 6 or 14 rows, panels 8 to 32 columns, blocks up to 8 steps and 512 rows.
IN_BLOCKS = (
    (9, 64, 28, 32),  # x is packed, h_{t-1} is not
    (17, 33, 64, 37),  # the other way round; a last block of one step
    (21, 60, 5, 7),
    (5, 131, 32, 64),
    (4, 200, 0, 16),
    (40, 16, 33, 1),
)
AFTER = (
    (9, 5, 28, 32),  # few rows
    (3, 64, 28, 32),  # few steps
    (4, 40, 130, 300),  # weights beyond L2
    (0, 64, 28, 32),
    (9, 0, 28, 32),
    (9, 64, 28, 0),
)
NEEDS = (("x", "weight_ih", "weight_hh"), ("weight_ih",), ("x",), ("weight_hh",), ())


def draw_step(sizes, dtype, lengths=False, reverse=False, peephole=True, P=None, seed=0):
    """The arguments of a backward pass after a forward pass: y, x, weight_ih, h0, then its own."""
    T, B, I, H = sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weight_hr = None if P is None else draw(P, H)
    P = H if P is None else P
    x, h0, c0 = draw(T, B, I), draw(B, P), draw(B, H)
    weights = draw(4 * H, I), draw(4 * H, P), draw(4 * H), draw(4 * H), draw(3, H) if peephole else None
    steps = torch.randint(T + 1, (B,), generator=generator) if lengths is True else None
    if isinstance(lengths, list):
        steps = torch.tensor(lengths)
    weight_ih, weight_hh, _, _, peepholes = weights = tuple(w if w is None else w / 4 for w in weights)
    y, _, _, c, gates = forward_op["cpp"](x, *weights, weight_hr, h0, c0, steps, reverse, True)
    douts = draw(T, B, P), draw(B, P), draw(B, H)
    return (x, weight_ih, y, h0), (*douts, c, gates, c0, weight_hh, peepholes, weight_hr, steps, reverse)


def draw_forward(sizes, lengths, reverse):
    """The arguments of a forward pass in float64."""
    T, B, I, H = sizes
    x, *weights, h0, c0 = (
        torch.randn(shape, dtype=torch.float64) / 4
        for shape in ((T, B, I), (4 * H, I), (4 * H, H), (4 * H,), (4 * H,), (3, H), (B, H), (B, H))
    )
    return x, *weights, None, h0, c0, torch.tensor(lengths), reverse, True


def given(factors, needs):
    """The factors that these gradients need."""
    x, weight_ih, y, h0 = factors
    return (
        x if "weight_ih" in needs else None,
        weight_ih if "x" in needs else None,
        *((y, h0) if "weight_hh" in needs else (None, None)),
    )


def compare(factors, arguments, needs=NEEDS[0]):
    """Its recurrence has the bits of `backward`; its products are those of that one's dxw."""
    found = InputGradients(*gradients_op["cpp"](*given(factors, needs), *arguments))
    dxw, *states, _ = backward_op["cpp"](*arguments)
    assert all(map(torch.equal, found[3:], states))
    check(found[:3], Factors(dxw, None, *given(factors, needs), *arguments[-2:]))
    return found


def plan(sizes, dtype, threads, l2_bytes=2**20, isa=None):
    T, B, I, H = sizes
    return cpp.plan(isa or cpp.isa(), dtype, [T, B, I, H, H], "gradients", threads, l2_bytes)


def blocks(*arguments):
    return plan(*arguments)["block_steps"]


@each_dtype
@pytest.mark.parametrize("sizes", IN_BLOCKS + AFTER, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_they_equal_those_of_two_calls(sizes, reverse, dtype):
    for lengths in (False, True):
        factors, arguments = draw_step(sizes, dtype, lengths, reverse, peephole=not lengths)
        for needs in NEEDS:
            compare(factors, arguments, needs)


def test_with_a_projection():
    for sizes, P in (((17, 33, 28, 37), 32), ((9, 64, 32, 32), 13), ((9, 64, 32, 32), 1)):
        compare(*draw_step(sizes, torch.float32, P=P))


def test_blocks_are_planned_where_da_stays_in_l2():
    for sizes in IN_BLOCKS:
        assert blocks(sizes, torch.float32, 1) > 1 and blocks(sizes, torch.float64, 1, 2**21) > 1, sizes
        assert blocks(sizes, torch.bfloat16, 1) == 0, sizes
    for sizes in AFTER:
        assert blocks(sizes, torch.float32, 1) == 0, sizes
    assert [blocks((28, 64, 28, 128), torch.float32, n, 2**21) for n in (1, 2)] == [4, 8]
    assert blocks((28, 64, 28, 128), torch.float32, 1, 2**18) == 0


def test_without_blocks_the_products_read_the_operand_rows_of_all_steps():
    for sizes in IN_BLOCKS:
        assert not plan(sizes, torch.float32, 1)["keeps_da"], sizes
        assert plan(sizes, torch.bfloat16, 1, isa="generic")["keeps_da"], sizes
    for sizes in AFTER:
        assert plan(sizes, torch.float32, 1)["keeps_da"], sizes


def test_amx_reads_dxw():
    try:
        chosen = [plan(sizes, torch.bfloat16, 1, isa="amx")["keeps_da"] for sizes in IN_BLOCKS + AFTER]
    except ValueError as error:
        pytest.skip(str(error))
    assert not any(chosen)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_every_number_of_threads_gives_the_same_bits_each_time(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for sizes in IN_BLOCKS[:4]:
            factors, arguments = draw_step(sizes, torch.float32)
            first, second = (compare(factors, arguments) for _ in range(2))
            assert all(map(torch.equal, first, second))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("sizes", [(9, 64, 32, 32), (9, 64, 20, 32)], ids=str)
def test_inputs_may_be_strided(sizes):
    T, B, I, H = sizes
    (_, weight_ih, y, h0), arguments = draw_step(sizes, torch.float32)
    strided_y = torch.cat([y, y], dim=-1)[..., :H]
    for x in (
        torch.randn(B, T, I).transpose(0, 1),
        torch.randn(T, B, I + 3)[..., :I],
        torch.randn(I).expand(T, B, I),
        torch.randn(I, B, T).permute(2, 1, 0),
    ):
        compare((x, weight_ih.T.contiguous().T, strided_y, h0[:1].expand(B, H)), arguments)
        compare((x, weight_ih, y.transpose(0, 1).contiguous().transpose(0, 1), h0), arguments)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_with_rows_of_unequal_lengths(threads):
    """They get about as many steps, some no row at all. Rows lack steps of a block, or its first only."""
    T, B = 17, 98
    sizes = T, B, 28, 64
    assert blocks(sizes, torch.float32, threads) > 0
    kinds = {
        "falling": [T - b * T // B for b in range(B)],
        "rising": [b * T // B for b in range(B)],
        "in_the_last": [0] * (B - 1) + [T],
        "in_one": [T if b == 40 else 0 for b in range(B)],
        "in_none": [0] * B,
        "whole": [T] * B,
        "all_but_one": [T - (b == 50) for b in range(B)],
        "of_whole_blocks": [8] * B,
    }
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for lengths in kinds.values():
            for reverse in (False, True):
                compare(*draw_step(sizes, torch.float32, lengths, reverse))
                inputs = draw_forward(sizes, lengths, reverse)
                outputs = (forward_op[name](*inputs) for name in ("cpp", "reference"))
                for found, exact in zip(*outputs, strict=True):
                    torch.testing.assert_close(found, exact, rtol=0, atol=1e-13)
    finally:
        torch.set_num_threads(before)


def test_padding_may_hold_nan():
    (x, weight_ih, y, h0), arguments = draw_step((9, 64, 32, 32), torch.float32, lengths=True)
    lengths, x = arguments[-2], x.clone()
    padding = torch.arange(9)[:, None] >= lengths
    x[padding] = torch.nan
    dx, *others = gradients_op["cpp"](x, weight_ih, y, h0, *arguments)
    assert all(other.isfinite().all() for other in others) and not dx[padding].any()


def test_infinities_and_nan_stay_where_they_are():
    (x, weight_ih, y, h0), arguments = draw_step((9, 64, 32, 32), torch.float32)
    x = x.clone()
    x[3, 7, 5] = torch.nan
    _, dweight_ih, dweight_hh, *_ = gradients_op["cpp"](x, weight_ih, y, h0, *arguments)
    assert dweight_ih[:, 5].isnan().all() and dweight_ih.isnan().sum() == 128
    assert dweight_hh.isfinite().all()


@pytest.mark.parametrize("isa", [isa for isa in cpp.isas() if isa != cpp.isa()])
def test_every_other_instruction_set(isa):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        __file__,
        "-k",
        "two_calls or threads or strided or projection or padding",
    ]
    environment = {**os.environ, "LSTM_FUSED_ISA": isa}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("sizes", [(9, 64, 28, 32), (3, 2, 5, 7)], ids=str)
def test_opcheck(sizes):
    factors, arguments = draw_step(sizes, torch.float32)
    opcheck(gradients_op["cpp"], (*factors, *arguments), test_utils=("test_schema", "test_faketensor"))


def test_the_operator_refuses_what_would_be_unsafe():
    (x, weight_ih, y, h0), arguments = draw_step((9, 64, 28, 32), torch.float32)
    for factors, message in (
        ((x[1:], weight_ih, y, h0), "x must have shape"),
        ((x[0], weight_ih, y, h0), "must have 3, 2 and 3 dimensions"),
        ((x, weight_ih[1:], y, h0), "weight_ih must have shape"),
        ((x, weight_ih, y[..., 1:], h0), "y must have shape"),
        ((x, weight_ih, y, h0[1:]), "h0 must have shape"),
        ((x, weight_ih, y, None), "y and h0 go together"),
        ((x.double(), weight_ih, y, h0), "x must be Float"),
    ):
        with pytest.raises(RuntimeError, match=message):
            gradients_op["cpp"](*factors, *arguments)
    with pytest.raises(RuntimeError, match="no layer norm"):
        gradients_op["cpp"](x, weight_ih, y, h0, *arguments, gain_hh=torch.ones(128))
    with pytest.raises(RuntimeError, match="was the forward pass asked to save"):
        gradients_op["cpp"](x, weight_ih, y, h0, *arguments[:3], torch.empty(0), *arguments[4:])


def test_it_has_no_derivative():
    (x, weight_ih, y, h0), arguments = draw_step((9, 64, 28, 32), torch.float32)
    dx, *_ = gradients_op["cpp"](x.requires_grad_(), weight_ih, y, h0, *arguments)
    with pytest.raises(RuntimeError, match="cpp_gradients has no derivative"):
        dx.sum().backward()


def test_a_team_may_be_smaller_than_planned():
    """One thread then has all rows, more than one block of the GEMM is deep."""
    program = "import test_cpp_gradients as t; t.compare_with_a_small_team()"
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=Path(__file__).parent, env=environment, timeout=120
    )


def compare_with_a_small_team():
    torch.set_num_threads(8)
    for B in (1200, 2000):
        assert blocks((6, B, 16, 32), torch.float32, 8) > 0
        for lengths in (False, True):
            compare(*draw_step((6, B, 16, 32), torch.float32, lengths))
