"""The cell's functions, point by point."""

import pytest
import torch
from cases import DEVICE

from tests.gpu_offline.points import BLOCK, ROUGH, UNITS, check_points, functions_kernel, points

# numpy, in which the interpreter computes, warns of what overflows.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def run(x, EXACT):
    y = torch.empty(4 * len(x), dtype=x.dtype, device=DEVICE)
    functions_kernel[(len(x) // BLOCK,)](x.to(DEVICE), y, len(x), EXACT, BLOCK)
    return y.cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_exact_as_a_cpu(dtype):
    x = points(dtype)
    check_points(x, run(x, EXACT=True))


def test_a_gpus_own_functions_are_good_enough_for_half_precision():
    x = points(torch.float32)
    check_points(x, run(x, EXACT=False), ROUGH)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU may be better than is documented")
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_and_not_for_float32(name):
    x = points(torch.float32)
    with pytest.raises(AssertionError, match=name):
        check_points(x, run(x, EXACT=False), ROUGH | {name: UNITS[name]})
