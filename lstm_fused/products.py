"""Large matrix products, by whichever of torch's libraries is fastest at them here."""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lstm_fused.tracing import has_values_on_cpu

ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
# Numbers in a sum over time from which on oneDNN is worth it, where it is the faster at all: at smaller ones
# it took 0.7 to 1.04 times as long as MKL wished, for it does not split the sum over threads.
LARGE = 2**20
# Up to here MKL is faster by the transpose, 1.05 to 2 times, with a copy that costs less.
NARROW = 2**17


def product(left: Tensor, right: Tensor) -> Tensor:
    """Left [..., K] times right [K, N]."""
    return onednn(left, right.T) if ours_to_choose(left, right) and onednn_wins() else left @ right


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Sum over t and batch of leftᵀ right: [T, B, M] and [T, B, N] give [M, N]."""
    left, right = rows(left), rows(right)
    if ours_to_choose(left, right):
        numbers = left.shape[1] * right.shape[1]
        if numbers > LARGE and onednn_wins():
            return onednn(right.T, left.T).T  # faster than the other way round
        if numbers <= NARROW:
            return (right.T @ left).T.contiguous()
    return left.T @ right


def rows(tensor: Tensor) -> Tensor:
    """The steps of all rows of the batch below each other, [T * B, N]."""
    T, B, N = tensor.shape
    return tensor.reshape(
        T * B, N
    )  # not flatten, which has no rule in torch.autograd.grad(is_grads_batched=True)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Total [M, N] plus left [M, K] times right [K, N], in total's place, for which vmap has no rule."""
    if torch._C._are_functorch_transforms_active():
        return torch.addmm(total, left, right)
    return total.addmm_(left, right)


def ours_to_choose(left: Tensor, right: Tensor) -> bool:
    """Whether the libraries differ for these; the compiler has its own ways, and vmap no rule for oneDNN."""
    plain = has_values_on_cpu(left) and left.dtype == right.dtype == torch.float32
    return plain and left.numel() > 0 and right.numel() > 0


@cache
def onednn_wins() -> bool:
    """Whether oneDNN beats torch.mm at float32 products on this processor, measured once in a process.

    MKL stops at AVX2 on other makers' processors, where oneDNN was 2.3 times as fast; on Intel's both
    are as fast. The bar lies far from either, so that one machine always gives one answer.
    """
    if not ONEDNN:
        return False
    a = torch.ones(512, 512, dtype=torch.float32, device="cpu")

    def seconds(multiply: Callable[[Tensor, Tensor], Tensor]) -> float:
        start = time.perf_counter()
        multiply(a, a)
        return time.perf_counter() - start

    times = [(seconds(torch.mm), seconds(onednn)) for _ in range(6)]
    mm, other = (float(min(found)) for found in zip(*times, strict=True))
    return mm > 1.4 * other


def onednn(left: Tensor, right: Tensor) -> Tensor:
    """Left [..., K] times right [N, K] transposed, as torch's compiler has it computed."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return result
