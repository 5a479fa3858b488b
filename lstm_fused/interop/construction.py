"""Decides whether `torch.nn.LSTM(...)` makes torch's module or, inside `replacing`, another."""

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from torch import nn

Makers = dict[type[nn.Module], Callable[..., nn.Module]]

# A context variable: other threads and tasks go on making torch's modules.
_makers: ContextVar[Makers] = ContextVar("_makers")
_NONE: Makers = {}
_lock = Lock()
_patched: set[type[nn.Module]] = set()


@contextmanager
def made_by(makers: Makers) -> Generator[None]:
    """While this lasts, a call of each class makes what its maker returns; subclasses are not affected.

    The class keeps its identity, so a name bound before, as by ``from torch.nn import LSTM``, is served too.
    """
    with _lock:
        for cls in makers.keys() - _patched:
            # For good: without it object.__new__ would refuse arguments, as it does once a class had its own.
            cls.__new__ = staticmethod(_new(cls))  # type: ignore[method-assign]
            _patched.add(cls)
    token = _makers.set(makers)
    try:
        yield
    finally:
        _makers.reset(token)


@contextmanager
def torchs_own() -> Generator[None]:
    """While this lasts, torch's classes make torch's modules, also inside `made_by`."""
    token = _makers.set(_NONE)
    try:
        yield
    finally:
        _makers.reset(token)


def _new(patched: type[nn.Module]) -> Callable[..., Any]:
    """The ``__new__`` of a class; Python calls ``__init__`` only if this returns an instance of the class."""

    def new(cls: type[Any], *args: Any, **options: Any) -> Any:
        make = _makers.get(_NONE).get(cls) if cls is patched else None
        # Copies and pickles make an empty instance without arguments.
        if make is not None and (args or options):
            return make(*args, **options)
        inherited = super(patched, cls).__new__  # of a mixin, which takes the arguments, or of object
        return inherited(cls) if inherited is object.__new__ else inherited(cls, *args, **options)

    new.__signature__ = inspect.signature(patched.__init__)  # type: ignore[attr-defined]
    return new
