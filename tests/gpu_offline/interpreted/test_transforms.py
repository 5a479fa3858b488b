"""The Triton engine under torch.func, by the tests of every engine."""

import pytest
import test_func

PLAIN, _, BARE = test_func.OPTIONS
CALLS = {
    "vmap": lambda: test_func.test_vmap_runs_the_engine_once("triton"),
    "per sample": lambda: test_func.test_per_sample_gradients("triton", PLAIN),
    "ensemble": lambda: test_func.test_ensembles("triton", BARE),
    "forward mode": lambda: test_func.test_forward_mode_by_func_and_by_dual_numbers("triton", PLAIN),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_like_every_engine(call):
    call()
