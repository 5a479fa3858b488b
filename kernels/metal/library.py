"""Compiles the Metal sources, once per process, dtype and plan."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from lstm_fused.kernels.metal.plan import Plan

FOLDER = Path(__file__).parent
FILES = {"step": ("cell", "step", "norm"), "resident": ("cell", "resident")}
# Metal's names of the tensors' dtype and of the accumulation dtype.
TYPES = {
    torch.float32: ("float", "float"),
    torch.float16: ("half", "float"),
    torch.bfloat16: ("bfloat", "float"),
}


@cache
def library(dtype: torch.dtype, plan: Plan) -> Any:
    """The compiled kernels of a plan: an object with a function of the name of each."""
    return torch.mps.compile_shader(source(dtype, plan))


def source(dtype: torch.dtype, plan: Plan) -> str:
    """The Metal source of a plan's kernels for a dtype; ASCII only, because PyTorch requires it."""
    scalar, real = TYPES[dtype]
    preamble = f"""\
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;
typedef {scalar} scalar;
typedef {real} real;
#define BB {plan.BB}
#define WIDTH {plan.WIDTH}
"""
    files = [(FOLDER / f"{name}.metal").read_text(encoding="ascii") for name in FILES[plan.kernel]]
    return "\n".join([preamble, *files])
