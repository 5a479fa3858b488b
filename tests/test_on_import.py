"""What is registered with modules of PyTorch that are slow to import: lstm_fused does not import them."""

import subprocess
import sys

import pytest

REGISTERED = {
    "torch.utils.flop_counter": "torch.ops.lstm_fused.reference_backward in module.flop_registry",
    "torch.onnx": "import_module('torch.onnx._internal.torchscript_exporter.registration')"
    ".registry.is_registered_op('lstm_fused::reference_forward', 17)",
}
PROGRAM = """
import sys
from importlib import import_module
from importlib.util import find_spec
import torch
{before}
import lstm_fused
assert ({name!r} in sys.modules) == {imported}
{after}
module = import_module({name!r})
assert {registered}
assert {name!r} not in [getattr(finder, "name", None) for finder in sys.meta_path]
from lstm_fused.autograd.flops import register
register()
"""


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize(
    ("before", "after"),
    [("import {}", ""), ("", ""), ("", "find_spec({!r})")],
    ids=["theirs_first", "ours_first", "looked_up"],
)
def test_registered_in_either_order_of_imports(name, before, after):
    program = PROGRAM.format(
        name=name,
        before=before.format(name),
        imported=bool(before),
        after=after.format(name),
        registered=REGISTERED[name],
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
