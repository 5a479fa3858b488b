"""Errors of argument checks, one line with what was expected and what was given; the warning of slowness."""


class ArgumentError(ValueError, RuntimeError):
    """An argument is invalid. It is a ValueError and a RuntimeError, because torch.nn.LSTM raises either.

    If the argument has a wrong type, it is a TypeError as well.
    """


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument has a wrong type."""


class SlowEngineWarning(UserWarning):
    """Plain PyTorch runs a layer step by step, and another dtype or device would be several times as fast."""


def bad(argument: str, expected: str, got: object) -> ArgumentError:
    """The error for an argument of a wrong shape, dtype, device or value."""
    return ArgumentError(f"{argument}: expected {expected}, got {got}")


def bad_type(argument: str, expected: str, got: object) -> ArgumentTypeError:
    """The error for an argument of a wrong type."""
    return ArgumentTypeError(f"{argument}: expected {expected}, got {got}")


def shown(value: object) -> str:
    """A value in one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:56]} ..."
