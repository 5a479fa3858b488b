"""The cell's functions at many points: a kernel that computes them, and bounds on their errors."""

import numpy as np
import torch
import triton
import triton.language as tl
from lstm_fused.kernels.cell import quotient, root, sigmoid, tanh

BLOCK = 256
SPECIAL = [0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-40, 3e38, -3e38]
# Where exp in float32 overflows, becomes subnormal, or changes its power of two.
EDGES = [
    sign * (edge + d)
    for sign in (1, -1)
    for edge in (43.5, 87, 88.376, 88.72, 89, 104)
    for d in (-0.1, 0, 0.1)
]
# The largest errors in ulp; PyTorch's sigmoid on a CPU is off by 2.5.
UNITS = {"sigmoid": 3, "tanh": 3, "quotient": 0.5, "root": 0.5}
# The same with native functions: the rounding of the exponent, and the errors of exponential and division.
ROUGH = UNITS | {"sigmoid": 2**9, "tanh": 2**5}


@triton.jit
def functions_kernel(x, y, N, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + n)
    tl.store(y + n, sigmoid(v, EXACT))
    tl.store(y + N + n, tanh(v, EXACT))
    tl.store(y + 2 * N + n, quotient(1, v))
    tl.store(y + 3 * N + n, root(tl.abs(v)))


def points(dtype, blocks=64):
    """Points of every size, the special ones among them."""
    n = blocks * BLOCK // 4
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, n, generator=generator, dtype=torch.float64, device="cpu")
    x[1] *= 12
    x[2] *= 40
    x[3] *= 2.0 ** -(torch.arange(n, device="cpu") * 30 / n)
    x = x.view(-1)
    x[: len(SPECIAL) + len(EDGES)] = torch.tensor(SPECIAL + EDGES, dtype=torch.float64, device="cpu")
    return x.to(dtype)


def check_points(x, y, units=UNITS):
    """Compare the kernel's results with exact values."""
    tiny = np.finfo(x.numpy().dtype).tiny  # smaller results may be flushed to zero
    wide = x.double().numpy().astype(np.longdouble)
    with np.errstate(all="ignore"):
        exact = (1 / (1 + np.exp(-wide)), np.tanh(wide), 1 / wide, np.sqrt(np.abs(wide)))
        for found, value, (name, most) in zip(y.view(4, -1).numpy(), exact, units.items(), strict=True):
            nearest = value.astype(found.dtype)
            same = (found == nearest) | (np.isnan(found) & np.isnan(nearest))
            off = np.abs(found - value)
            allowed = (most + 1e-3) * np.spacing(np.abs(nearest)) + tiny
            wrong = ~same & ~(off <= allowed)
            assert not wrong.any(), (
                f"{name}: {found[wrong][:3]} at {x.numpy()[wrong][:3]}, not {nearest[wrong][:3]}"
            )
