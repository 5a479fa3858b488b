"""Checks first and second derivatives and forward mode of an engine numerically, in float64."""

from functools import partial

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from lstm_fused.testing.cases import Case, Run, arguments, lacks, leaves_of, run_of, with_leaves
from lstm_fused.testing.comparison import Check, report

F64 = torch.float64
# Small, because numerical derivatives call the engine twice for each element of each argument.
SMALL = (
    Case("plain", T=3, B=2, I=2, H=3),
    Case("lengths in reverse", T=3, B=2, I=2, H=3, lengths=(3, 1), reverse=True),
    Case("projection", T=2, B=2, I=2, H=3, P=2, bias=False),
)


def assert_engine_has_derivatives(engine: str | Run, *, device: torch.device | str = "cpu") -> None:
    """Check an engine by gradcheck, forward mode included, and by gradgradcheck, in float64.

    Args:
        engine: as for `assert_engine_matches_reference`.
        device: device of the tensors.

    Raises:
        AssertionError: a derivative is wrong, or a case fails with an error; the message lists all of them.
        ArgumentError: no engine has that name.

    Example:
        >>> from lstm_fused.testing import assert_engine_has_derivatives
        >>> assert_engine_has_derivatives("reference")
    """
    report(derivatives(engine, torch.device(device)))


def derivatives(engine: str | Run, device: torch.device) -> list[Check]:
    """The checks of `assert_engine_has_derivatives`; none where there is no float64."""
    kinds = {"gradcheck": first, "forward mode": forward_mode, "gradgradcheck": second}
    return [
        Check(f"{kind} of {case.name}", partial(check, engine, case, device))
        for case in SMALL
        if device.type != "mps" and not lacks(engine, case, F64, device)
        for kind, check in kinds.items()
    ]


def first(engine: str | Run, case: Case, device: torch.device) -> None:
    """Check the gradients."""
    gradcheck(*function_of(engine, case, device))


def forward_mode(engine: str | Run, case: Case, device: torch.device) -> None:
    """Check forward mode."""
    function, leaves = function_of(engine, case, device)
    gradcheck(function, leaves, check_forward_ad=True, check_backward_ad=False)


def second(engine: str | Run, case: Case, device: torch.device) -> None:
    """Check the second derivatives."""
    gradgradcheck(*function_of(engine, case, device), fast_mode=True)


class Outputs:
    """The outputs as a function of the differentiable arguments."""

    def __init__(self, engine: str | Run, case: Case, device: torch.device) -> None:
        self.run, self.given = run_of(engine), arguments(case, F64, device)
        self.names = list(leaves_of(self.given))

    def __call__(self, *leaves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the engine."""
        y, (h_n, c_n) = self.run(**with_leaves(self.given, dict(zip(self.names, leaves, strict=True))))
        return y, h_n, c_n


def function_of(engine: str | Run, case: Case, device: torch.device) -> tuple[Outputs, tuple[Tensor, ...]]:
    """A function of tensors for gradcheck, and its arguments."""
    outputs = Outputs(engine, case, device)
    return outputs, tuple(leaf.requires_grad_() for leaf in leaves_of(outputs.given).values())
