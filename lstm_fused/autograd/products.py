"""Large matrix products, by whichever of torch's libraries is fastest at them here."""

import torch
from torch import Tensor

from lstm_fused.autograd.tracing import has_values_on_cpu
from lstm_fused.backends import cpp

# Which library multiplies floats faster follows from the processor, and is never measured in the process,
# where other programs would decide which bits come out. Large products took, in times of MKL's:
#
#     AVX-512, not by Intel  0.43, for there MKL stops at AVX2
#     AVX-512, by Intel      0.95 to 1.1
#     AVX2 alone             not measured: both use the same instructions
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.mkl.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and cpp.on_intel() is False
)
# Numbers in a sum over time from which on oneDNN is worth it, where it is the faster at all: at smaller ones
# it took 0.7 to 1.04 times as long as MKL wished, for it does not split the sum over threads.
LARGE = 2**20
# Up to here MKL is faster by the transpose, 1.05 to 2 times, with a copy that costs less.
NARROW = 2**17


def product(left: Tensor, right: Tensor) -> Tensor:
    """Left [..., K] times right [K, N]."""
    return onednn(left, right.T) if ONEDNN and ours_to_choose(left, right) else left @ right


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Sum over t and batch of leftᵀ right: [T, B, M] and [T, B, N] give [M, N]."""
    left, right = rows(left), rows(right)
    if ours_to_choose(left, right):
        numbers = left.shape[1] * right.shape[1]
        if ONEDNN and numbers > LARGE:
            return onednn(right.T, left.T).T  # faster than the other way round
        if numbers <= NARROW:
            return (right.T @ left).T.contiguous()
    return left.T @ right


def rows(tensor: Tensor) -> Tensor:
    """The steps of all rows of the batch below each other, [T * B, N]."""
    T, B, N = tensor.shape
    return tensor.reshape(T * B, N)  # flatten has no rule for is_grads_batched of torch.autograd.grad


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Total [M, N] plus left [M, K] times right [K, N], in total's place, for which vmap has no rule."""
    if torch._C._are_functorch_transforms_active():
        return torch.addmm(total, left, right)
    return total.addmm_(left, right)


def ours_to_choose(left: Tensor, right: Tensor) -> bool:
    """Whether the libraries differ for these; the compiler has its own ways, and vmap no rule for oneDNN."""
    plain = has_values_on_cpu(left) and left.dtype == right.dtype == torch.float32
    return plain and left.numel() > 0 and right.numel() > 0


def onednn(left: Tensor, right: Tensor) -> Tensor:
    """Left [..., K] times right [N, K] transposed, as torch's compiler has it computed."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return result
