"""Patches Triton's interpreter, for correct bfloat16, inexact float32, and speed.

It truncates bfloat16 instead of rounding it, and multiplies it as integers. Its float32 exp, division and
square root are more exact than a GPU's may be. It replaces all of Triton's language again at every call of a
function, a third of its time, and rebuilds a table of dtypes at every lookup.
"""

from functools import cache

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tests.gpu_offline import approximate

torch.set_num_threads(1)
# As for tensor cores; the interpreter computes tf32 as float32.
torch.set_float32_matmul_precision("high")

plain_dot, plain_trunc = InterpreterBuilder.create_dot, InterpreterBuilder.create_fp_trunc
plain_splat = InterpreterBuilder.create_splat


def widened(handle):
    """Widen a bfloat16 operand to float32."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.view(np.uint16).astype(np.uint32) << 16
    return TensorHandle(bits.view(np.float32), tl.float32)


def create_dot(self, a, b, *rest):
    return plain_dot(self, widened(a), widened(b), *rest)


def create_fp_trunc(self, src, dst_type):
    if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
        return plain_trunc(self, src, dst_type)
    rounded = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16()
    return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)


def create_splat(self, shape, scalar):
    tile = plain_splat(self, shape, scalar)
    if scalar.data.dtype == bool:  # Triton 3.9 gives it the dtype of what was compared
        tile.data = tile.data.astype(bool)
    return tile


InterpreterBuilder.create_dot, InterpreterBuilder.create_fp_trunc = create_dot, create_fp_trunc
InterpreterBuilder.create_splat = create_splat


plain_tensor = interpreter._patch_lang_tensor


def replace_tensor(tensor, *scope):
    plain_tensor(tensor, *scope)
    # Triton 3.6 leaves it to numpy, which since 2.5 takes no array of one number for the number.
    tensor.__index__ = lambda self: int(self.handle.data.item())


interpreter._patch_lang_tensor = replace_tensor


def as_on_a_gpu(name, function):
    """Replace a float32 operation of the interpreter."""
    plain = getattr(InterpreterBuilder, name)

    def operation(self, *operands):
        if operands[0].dtype.scalar != tl.float32:
            return plain(self, *operands)
        with np.errstate(all="ignore"):
            return TensorHandle(function(*(operand.data for operand in operands)), tl.float32)

    setattr(InterpreterBuilder, name, operation)


for name, function in {
    "create_exp": approximate.exp,
    "create_exp2": approximate.ex2,
    "create_fdiv": approximate.divide,
    "create_sqrt": approximate.sqrt,
}.items():
    as_on_a_gpu(name, function)


replace_language, plain_np_dtype = interpreter._patch_lang, cache(interpreter._get_np_dtype)


class Kept:
    """A scope that restores nothing, because this process only interprets."""

    @staticmethod
    def restore():
        pass


@cache
def replace_language_once(function):
    replace_language(function)
    return Kept


def get_np_dtype(kind):
    scalar = kind.scalar
    return np.dtype(np.uint64) if scalar.is_ptr() else plain_np_dtype(scalar)


interpreter._patch_lang, interpreter._get_np_dtype = replace_language_once, get_np_dtype
