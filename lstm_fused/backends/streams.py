"""Runs both directions of a layer at the same time on a CUDA card, each on a stream of its own.

A step is mostly latency, so one direction leaves most of a card idle. Each direction gets half of the card;
`lstm_fused.kernels.side_by_side` says whether that pays and is known to be right.

Autograd runs a node on the stream of its forward pass, and synchronizes streams and keeps memory where a
gradient goes from one to another ("Stream semantics of backward passes" in PyTorch's notes on CUDA). So the
backward passes of the directions run at the same time too.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lstm_fused.autograd import autocast, tracing
from lstm_fused.backends import triton
from lstm_fused.backends.table import select
from lstm_fused.contract import PLAIN, Variant

DEVICE = "cuda"
# A training step of both directions on an H200 took 1.07 times as long at the same time with 256 steps, by
# the host's part, and 0.85 times as long with 1024 (docs/gpu/h200.md).
LEAST_STEPS = 512


class State(threading.local):
    """State of this thread."""

    launches = 1  # how many launches share the card
    given = False  # whether `sharing` says so, rather than `pay`


STATE = State()


@contextmanager
def sharing(launches: int) -> Iterator[None]:
    """Plan the launches of this thread for their share of the card, and make them one after the other."""
    before = STATE.launches, STATE.given
    STATE.launches, STATE.given = launches, True
    try:
        yield
    finally:
        STATE.launches, STATE.given = before


def pay(
    engine: str | None, x: Tensor, H: int, P: int, variant: Variant, calls: list[tuple[Any, ...]]
) -> bool:
    """Whether both directions of a layer are to run at the same time.

    Args:
        engine: the engine's name, or None.
        x: the layer's input, [T, B, I].
        H: hidden size.
        P: size of a projected h, 0 without a projection.
        variant: options of the recurrence.
        calls: the arguments of each direction; a backward pass may follow if one of them needs a gradient.
    """
    if not possible(x):
        return False
    dtype = autocast.computed_in(x)
    if select(engine, x.device, dtype, variant) != "triton":
        return False
    from lstm_fused.kernels import side_by_side

    sizes, varied = (H, x.shape[1], P), variant is not PLAIN
    backward = torch.is_grad_enabled() and needs_gradient(tuple(calls))
    found: bool = side_by_side.side_by_side(engine is None, x.device, dtype, sizes, varied, backward)
    return found


def needs_gradient(value: Any) -> bool:
    """Whether a tensor in the value or in its tuples requires a gradient."""
    if isinstance(value, Tensor):
        return value.requires_grad
    return isinstance(value, tuple) and any(map(needs_gradient, value))


def possible(x: Tensor) -> bool:
    """Whether streams can be used in this call, and there are enough steps.

    Not where `sharing` plans the launches, nor while the call is recorded or transformed. Nor with hooks on
    saved tensors, which a checkpoint has: they may compute on the stream of one direction what the other one
    reads.
    """
    if STATE.given or x.device.type != DEVICE or not tracing.has_values(x) or tracing.watched():
        return False
    if len(x) < LEAST_STEPS or 0 in x.shape or forward_ad._current_level >= 0:
        return False
    return triton.serves(x) and torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def side_by_side(
    device: torch.device, function: Callable[..., Any], first: tuple[Any, ...], second: tuple[Any, ...]
) -> list[Any]:
    """Call a function with each of two lists of arguments at the same time.

    Args:
        device: the card.
        function: takes and returns tensors, tuples of them, and anything else.
        first: arguments of the call on the current stream.
        second: arguments of the call on another stream.

    Returns:
        Both results, for use on the current stream.
    """
    here = torch.cuda.current_stream(device)
    there = partner(here)

    def lend(tensor: Tensor) -> Tensor:
        """For the other stream; autograd frees it after a backward pass that reads it there."""
        tensor.record_stream(there)
        # The gradient is added up by a node of this stream: one that this call did not make may belong to
        # neither, and PyTorch warns of those.
        return tensor.view_as(tensor) if tensor.requires_grad and torch.is_grad_enabled() else tensor

    second = each(lend, second)
    there.wait_stream(here)
    try:
        with sharing(2):
            # The second call is made first: autograd goes back in the opposite order, so that the first
            # call's backward pass is on its way before this stream has to wait for the other's gradients.
            with torch.cuda.stream(there):
                other = function(*second)
            one = function(*first)
    finally:
        here.wait_stream(there)
    each(lambda tensor: tensor.record_stream(here), other)
    return [one, other]


def each(change: Callable[[Tensor], Any], value: Any) -> Any:
    """The value with a function applied to each tensor in it and in its tuples; itself if nothing changes."""
    if isinstance(value, Tensor):
        return change(value)
    if not isinstance(value, tuple):
        return value
    parts = [each(change, part) for part in value]
    if all(part is old for part, old in zip(parts, value, strict=True)):
        return value
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def partner(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """The stream beside another one, always the same: memory and graphs of step kernels are by stream."""
    key = stream.device, stream.cuda_stream
    if key not in _partners:
        from lstm_fused.kernels import runtime

        found = runtime.new_stream(stream.device, stream.priority)
        _partners.setdefault(key, found)  # another thread may have come first
    return _partners[key]


_partners: dict[tuple[torch.device, int], torch.cuda.Stream] = {}
