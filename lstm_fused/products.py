"""Large matrix products, by whichever of torch's libraries is fastest at them here."""

import torch
from torch import Tensor

# MKL's float32 kernels stop at AVX2 on other makers' processors, oneDNN's do not: on one with AVX-512 it was
# 1.1 to 1.6 times as fast at every dx of `bench/sizes.py`, and at sums over time whose result is large.
ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
LARGE = 2**20  # smaller ones it takes 0.7 to 1.04 times as fast: it does not split the sum over threads


def product(left: Tensor, right: Tensor) -> Tensor:
    """Left [..., K] times right [K, N]."""
    return onednn(left, right.T) if takes_onednn(left, right) else left @ right


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Sum over t and batch of leftᵀ right: [T, B, M] and [T, B, N] give [M, N]."""
    left, right = left.flatten(0, 1), right.flatten(0, 1)
    if takes_onednn(left, right) and left.shape[1] * right.shape[1] > LARGE:
        return onednn(right.T, left.T).T  # faster than the other way round
    return left.T @ right


def takes_onednn(left: Tensor, right: Tensor) -> bool:
    """Whether oneDNN is here, and takes these; the compiler has its own ways, and vmap no rule for it."""
    if not ONEDNN or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    plain = left.device.type == "cpu" and left.dtype == right.dtype == torch.float32
    return plain and left.numel() > 0 and right.numel() > 0


def onednn(left: Tensor, right: Tensor) -> Tensor:
    """Left [..., K] times right [N, K] transposed, as torch's compiler has it computed."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return result
