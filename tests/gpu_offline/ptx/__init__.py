"""Runs the PTX that Triton makes for sm_80 and sm_90, and reports what a GPU would let pass.

All threads of a block execute an instruction together, as numpy arrays; blocks take turns, drawn at random,
at atomics and at relaxed and acquiring loads; weak_memory.py says what they see of one another's stores.
Errors: accesses outside the tensors or misaligned; two warps that access one byte of shared memory, one of
them writing, with no barrier between; a release while other warps' stores are not behind a barrier; branches
on which threads diverge, except to leave a loop of inline assembly. It also reports the barriers that
something depends on: two warps that accessed one byte just before and just after. Semantics and the layout of
matrix fragments: NVIDIA, "PTX ISA", version 8. Approximate instructions are as inexact as it allows.
"""

from .machine import Machine
from .program import Fault, Program

__all__ = ["Fault", "Machine", "Program"]
