"""The C++ engine's library, and torch.compile, in other versions of torch than the one it was built with.

`make test-versions` downloads them to build/torch/VERSION; without any, there is nothing to test.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lstm_fused.backends import cpp

ROOT = Path(__file__).parent.parent
TORCHES = sorted(folder for folder in (ROOT / "build" / "torch").glob("*") if (folder / "torch").is_dir())
if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)


def try_everything():
    """Compare the engine with the reference, and look at errors; run with another torch."""
    import torch

    import lstm_fused
    from lstm_fused.autograd.operators import forward_op

    print(torch.__version__, cpp.isa())
    assert cpp.unavailable() is None, cpp.unavailable()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    chosen = cpp.plan(cpp.isa(), torch.bfloat16, [28, 64, 28, 128, 128], "forward", 2, 2**20)
    assert chosen["threads"] == 2 and cpp.isa() in cpp.isas() and cpp.on_intel() in (True, False)
    bounds = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.05}
    for dtype, bound in bounds.items():
        for B in (3, 70):  # small results are in torch's memory, large ones in the engine's
            module = lstm_fused.LSTM(28, 96, 2, bidirectional=True, dtype=dtype)
            x = torch.randn(B, 19, 28, dtype=dtype).mT.contiguous().mT.requires_grad_()
            lengths = torch.randint(1, 20, (B,))
            module.batch_first = True
            found = {}
            for engine in ("cpp", "reference"):
                module.engine = engine
                y, (h_n, c_n) = module(x, lengths=lengths)
                grads = torch.autograd.grad(y.float().sin().sum(), [x, *module.parameters()])
                found[engine] = [t.detach() for t in (y, h_n, c_n, *grads)]
            for ours, exact in zip(found["cpp"], found["reference"], strict=True):
                off = (ours - exact).abs().max() / exact.abs().max()
                assert off <= bound, (dtype, B, float(off))
    zeros = torch.zeros
    arguments = [zeros(2, 3, 4), zeros(28, 4), zeros(28, 7), *[None] * 4, zeros(3, 7), zeros(3, 7), None]
    for n, wrong, text in (
        (1, zeros(27, 4), "weight_ih must have shape [28, 4], got [27, 4]"),
        (0, zeros(2, 3, 4).half(), "x must be bfloat16, float32 or float64, got Half"),
        (0, zeros(2, 3), "must have 3, 2 and 2 dimensions, got 2, 2 and 2"),
        (9, torch.tensor([2, 3, 1]), "lengths[1] must be in [0, 2], got 3"),
    ):
        with pytest.raises(RuntimeError) as caught:
            forward_op["cpp"](*arguments[:n], wrong, *arguments[n + 1 :], False, False)
        assert text in str(caught.value)
        assert type(caught.value) is RuntimeError


def compile_layers():
    """Compile layers, with and without every option, and export them; run with another torch."""
    import torch

    import lstm_fused

    options = {"zoneout_h": 0.5, "cell_clip": 1.0, "layer_norm": True}
    for module in (
        lstm_fused.LSTM(3, 5, 2, bidirectional=True),
        lstm_fused.LSTM(3, 5, proj_size=2, **options),
    ):
        compiled = torch.compile(module.eval(), fullgraph=True, backend="aot_eager")
        x = torch.randn(4, 2, 3, requires_grad=True)
        y, wanted = compiled(x)[0], module(x)[0]
        torch.testing.assert_close(y, wanted)
        grads = [torch.autograd.grad(outputs.sum(), x)[0] for outputs in (y, wanted)]
        torch.testing.assert_close(*grads)
    module, x = lstm_fused.LSTM(28, 96, 2, bidirectional=True), torch.randn(19, 3, 28)
    expected = module(x, lengths=torch.tensor([19, 4, 0]))[0]
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    program = torch.export.export(module, (x, None, torch.tensor([1, 2, 3]))).module()
    assert torch.equal(compiled(x, lengths=torch.tensor([19, 4, 0]))[0], expected)
    assert torch.equal(program(x, None, torch.tensor([19, 4, 0]))[0], expected)
    print(torch.__version__)


@pytest.mark.skipif(not TORCHES, reason="there is no other torch: make test-versions")
@pytest.mark.parametrize("what", ["try_everything", "compile_layers"])
@pytest.mark.parametrize("folder", TORCHES, ids=lambda folder: folder.name)
def test_it_runs_in_another_torch(folder, what):
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", f"import test_versions; test_versions.{what}()"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(folder.name), done.stdout
