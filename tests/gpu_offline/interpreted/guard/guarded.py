"""What the tests of the guard share: kernels that do something wrong, and a small layer."""

from pathlib import Path

import torch
from lstm_fused.kernels import guard, resident, side_by_side, steps, verdicts
from lstm_fused.kernels.choose import Layer

from lstm_fused import LSTM

CPU = torch.device("cpu")
SMALL = Layer("forward", 5, 3, torch.float32, "tf32")
close = torch.testing.assert_close


def forget():
    """What a new process does not know."""
    for known in (guard._decided, guard._warned, side_by_side._decided, verdicts._known):
        known.clear()
    for cached in (verdicts.machine, verdicts.sources):
        cached.cache_clear()


class Kernel:
    """A kernel that notes its launches and does something wrong."""

    def __init__(self, kernel, launched, name, fault):
        self.kernel, self.launched, self.name, self.fault = kernel, launched, name, fault

    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.launched.append(self.name)
            self.fault(lambda: self.kernel[grid](*arguments, **options), arguments)

        return run


def right(run, arguments):
    run()


class Launched(list):
    """What is launched, as "direction kernel"."""

    def __init__(self, patch):
        super().__init__()
        self.patch = patch

    def plant(self, direction, kernel, fault):
        """Let a kernel do something wrong from now on."""
        module = steps if kernel == "step" else resident
        name = f"lstm_{direction}_{kernel}_kernel"
        plain = getattr(module, name)
        plain = plain.kernel if isinstance(plain, Kernel) else plain
        self.patch.setattr(module, name, Kernel(plain, self, f"{direction} {kernel}", fault))


def outcome(module, x):
    """The outputs and all gradients."""
    y, (h_n, c_n) = module(x)
    grads = torch.autograd.grad(y.cos().sum() + h_n.sum() + c_n.sum(), list(module.parameters()))
    return y, h_n, c_n, *grads


def check_right(module, x):
    """It gives what the reference gives."""
    found = outcome(module, x)
    engine, module.engine = module.engine, "reference"
    close(found, outcome(module, x))
    module.engine = engine


def small():
    return LSTM(3, 5), torch.randn(2, 3, 3)


def cache_files():
    return sorted(Path(verdicts.cache_folder()).rglob("*"))


Y, REVERSE = 9, 15  # positions among the arguments of the sequence kernels


def wrong_numbers(run, arguments):
    run()
    arguments[Y].mul_(1.1)


def fails(run, arguments):
    raise RuntimeError("out of resource: shared memory")
