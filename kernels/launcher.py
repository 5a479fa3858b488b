"""Makes a single launch of a compiled kernel, without Triton's own search for it; launch.py runs a layer.

Triton inspects every argument of every launch to find the kernel that was compiled for such arguments; on a
small problem that takes longer than the kernel. The key is known here: the plan, the constants, the dtype of
each tensor and whether it starts at a multiple of 16 bytes, and of each number whether it is 1, a multiple of
16, or large.
"""

from typing import Any

import torch
import triton
from lstm_fused.kernels.plan import Plan
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

# Triton before 3.8 needs more registers.
BEFORE_3_8 = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)

DIRECT = torch.version.hip is None  # on AMD's cards the key includes the size of a tensor's memory


def launch(
    plan: Plan,
    kernel: Any,
    grid: tuple[int, int],
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[int, ...],
    constants: tuple[Any, ...],
) -> None:
    """Launch a kernel whose parameters are tensors, numbers, constants and the plan's options, in this order.

    Args:
        plan: the options.
        kernel: a Triton or Gluon function.
        grid: the number of programs.
        tensors: arguments on the current device.
        numbers: integer arguments.
        constants: constexpr arguments.
    """
    if not (DIRECT and isinstance(kernel, JITFunction)) or kernel.pre_run_hooks:
        kernel[grid](*tensors, *numbers, *constants, **plan.options)
        return
    kinds = [t is not None and (t.dtype, t.data_ptr() % 16 == 0) for t in tensors]
    sizes = [n == 1 or (n % 16 == 0, n >> 31) for n in numbers]
    key = id(kernel), driver.active.get_current_device(), *constants, *kinds, *sizes
    if (known := plan.launched.get(key)) is None:
        compiled = kernel[grid](*tensors, *numbers, *constants, **plan.options)
        if isinstance(compiled, CompiledKernel):
            names = kernel.arg_names[len(tensors) + len(numbers) + len(constants) :]
            # The kernel is kept, because its id could be reused otherwise.
            plan.launched[key] = compiled, [plan.options[name] for name in names], kernel
        return
    compiled, options, _ = known
    # For a bare address the launcher does not ask the driver whether it is on the card.
    addresses = [t.data_ptr() if t is not None and t.is_cuda else t for t in tensors]
    compiled[*grid, 1](*addresses, *numbers, *constants, *options)
