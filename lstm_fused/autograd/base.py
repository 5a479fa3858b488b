"""What the autograd Functions share: a shorter `apply`, and a watch on tensors that are changed in place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead

from lstm_fused.autograd import tracing


def unwrapped(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments without the wrappers of transforms that have ended."""
    # None is tested first: isinstance with a Tensor takes longer to say no than to say yes.
    return tuple([unwrap_if_dead(a) if a is not None and isinstance(a, Tensor) else a for a in arguments])


class Function(torch.autograd.Function):
    """An autograd Function whose `apply` skips PyTorch's search for default arguments.

    The search takes a third of a short layer's time.
    """

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        """Apply the Function at every transform level."""
        if not torch._C._are_functorch_transforms_active():
            return cls.apply_once(*unwrapped(arguments))
        # PyTorch computes a jvp with forward mode off, so an outer level would find no tangent in its result
        # (pytorch/pytorch#197867); the reference's own operations nest.
        return cls.composed(*arguments) if tracing.forward_levels() > 1 else super().apply(*arguments)

    @classmethod
    def apply_once(cls, *arguments: Any) -> Any:
        """Apply the Function at the current transform level only."""
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]

    @staticmethod
    def composed(*arguments: Any) -> Any:
        """The result of `forward`, composed of PyTorch's own differentiable operations."""
        raise NotImplementedError


EMPTY = torch.empty(0, device="cpu")


class Version:
    """Detects in-place changes of a tensor without keeping its memory alive.

    Args:
        tensor: the tensor to watch.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.counter = tensor.detach()  # shares the version counter,
        self.counter.data = EMPTY  # which outlives this change of memory
        self.version = self.counter._version

    def changed(self) -> bool:
        """True if the tensor has changed since."""
        return self.counter._version != self.version
