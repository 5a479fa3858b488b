"""Launches of compiled kernels without Triton's own search for them.

Triton looks at every argument of every launch to find the kernel that was compiled for such arguments; on a
small problem that takes longer than the kernel. What decides is known here: the plan, the constants, of each
tensor its dtype and whether it starts at a multiple of 16 bytes, of each number whether it is 1, a multiple
of 16, or large.
"""

from typing import Any

import torch
from lstm_fused.kernels.plan import Plan
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

DIRECT = torch.version.hip is None  # on AMD's cards the size of a tensor's memory decides as well


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
        plan: has the options.
        kernel: one of Triton's or Gluon's.
        grid: its programs.
        tensors: all on the current device.
        numbers: integers that vary.
        constants: what it is compiled for.
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
            # With the kernel, whose id would be another's if it were gone.
            plan.launched[key] = compiled, [plan.options[name] for name in names], kernel
        return
    compiled, options, _ = known
    # An address by itself spares the driver's word on whether it is the card's.
    addresses = [t.data_ptr() if t is not None and t.is_cuda else t for t in tensors]
    compiled[*grid, 1](*addresses, *numbers, *constants, *options)
