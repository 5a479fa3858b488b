"""Chooses MKL or oneDNN for the large matrix products outside the recurrence."""

import torch
from torch import Tensor

from lstm_fused.autograd.tracing import has_values_on_cpu
from lstm_fused.backends import cpp

# The processor decides which library multiplies float32: timing them in the process would make the result's
# bits depend on load. oneDNN's time for large products, divided by MKL's:
#
#     AVX-512, other vendors  0.43 (MKL uses AVX2 there)
#     AVX-512, Intel          0.95 to 1.1
#     AVX2 only               not measured: both use the same instructions
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.mkl.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and cpp.on_intel() is False
)
# [elements of a weight gradient] Minimum for oneDNN, if ONEDNN holds. For smaller ones it took 0.7 to 1.04 of
# MKL's time, because it does not split the sum over threads.
ONEDNN_MIN_ELEMENTS = 2**20
# [elements of a weight gradient] Maximum up to which MKL is 1.05 to 2 times as fast at its transpose, copy
# included.
TRANSPOSE_MAX_ELEMENTS = 2**17


def product(left: Tensor, right: Tensor) -> Tensor:
    """Left [..., K] times right [K, N]."""
    return onednn(left, right.T) if ONEDNN and ours_to_choose(left, right) else left @ right


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Sum over t and batch of leftᵀ right: [T, B, M] and [T, B, N] give [M, N]."""
    left, right = rows(left), rows(right)
    if ours_to_choose(left, right):
        elements = left.shape[1] * right.shape[1]
        if ONEDNN and elements > ONEDNN_MIN_ELEMENTS:
            return onednn(right.T, left.T).T  # the faster order
        if elements <= TRANSPOSE_MAX_ELEMENTS:
            return (right.T @ left).T.contiguous()
    return left.T @ right


def rows(tensor: Tensor) -> Tensor:
    """Stack the steps of all rows of the batch, [T * B, N]."""
    T, B, N = tensor.shape
    return tensor.reshape(T * B, N)  # flatten has no batching rule for is_grads_batched


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Total [M, N] plus left [M, K] times right [K, N]; in place, but not under vmap, which has no rule."""
    if torch._C._are_functorch_transforms_active():
        return torch.addmm(total, left, right)
    return total.addmm_(left, right)


def ours_to_choose(left: Tensor, right: Tensor) -> bool:
    """True if this module may choose: torch.compile chooses itself, and vmap has no rule for oneDNN."""
    plain = has_values_on_cpu(left) and left.dtype == right.dtype == torch.float32
    return plain and left.numel() > 0 and right.numel() > 0


def onednn(left: Tensor, right: Tensor) -> Tensor:
    """Left [..., K] times right [N, K] transposed, by the oneDNN operator that torch.compile emits."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return result
