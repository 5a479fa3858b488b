"""The interpreter's own arithmetic, where a wrong one would go unnoticed."""

import torch
import triton
import triton.language as tl


@triton.jit
def round_kernel(x, y, N: tl.constexpr):
    n = tl.arange(0, N)
    tl.store(y + n, tl.load(x + n).to(y.dtype.element_ty))


@triton.jit
def product_kernel(x, y, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(y + at, tl.dot(tl.load(x + at), tl.load(x + at)))


def test_float32_is_rounded_to_the_nearest_bfloat16():
    x = torch.randn(256)
    y = torch.empty(256, dtype=torch.bfloat16)
    round_kernel[(1,)](x, y, 256)
    assert torch.equal(y, x.bfloat16())


def test_bfloat16_product():
    x = torch.randn(16, 16).bfloat16()
    y = torch.empty(16, 16)
    product_kernel[(1,)](x, y, 16)
    torch.testing.assert_close(y, x.float() @ x.float())


@triton.jit
def masked_kernel(y, count, N: tl.constexpr):
    n = tl.arange(0, N)
    tl.store(y + n, n + 1, (n < 4) & (count == 3))


def test_a_tile_of_conditions_combines_with_one():
    y = torch.zeros(8, dtype=torch.int32)
    masked_kernel[(1,)](y, 2, 8)
    assert not y.any()
    masked_kernel[(1,)](y, 3, 8)
    assert y.tolist() == [1, 2, 3, 4, 0, 0, 0, 0]
