"""The error that every check raises: the argument, what was expected and what came, in one line."""


class ArgumentError(ValueError, RuntimeError):
    """An argument cannot be used; where torch.nn.LSTM says ValueError or RuntimeError, this is either.

    It is a TypeError as well where the argument's type is at fault.
    """


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument is of a type that cannot be used."""


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
