"""Rejects operations that MPS lacks, float64 included, in a run on the CPU."""

import re
from functools import cache, partial
from pathlib import Path

import torch
import torchgen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lstm_fused import reference
from lstm_fused.autograd import operators
from lstm_fused.backends import metal

OWN = {
    "metal_forward": partial(operators.forward_kernel, metal.forward),
    "metal_backward": partial(operators.backward_kernel, metal.backward),
    "reference_forward": partial(operators.forward_kernel, reference.forward),
    "reference_backward": partial(operators.backward_kernel, reference.backward),
}


@cache
def functions():
    """PyTorch's own list of its functions and where each runs, by name."""
    text = (Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml").read_text()
    return dict(re.findall(r"^- func: ([\w.]+)\(.*\n((?:(?!- func).*\n)*)", text, re.MULTILINE))


def runs_on_mps(name):
    """Whether PyTorch lists a kernel for MPS, or makes the function of others."""
    about = functions()[name]
    if delegate := re.search(r"structured_delegate: ([\w.]+)", about):
        return runs_on_mps(delegate[1])
    return "dispatch:" not in about or re.search(r"^    [\w, ]*\b(MPS|Composite\w+)\b", about, re.MULTILINE)


class LikeMPS(TorchDispatchMode):
    """Rejects what MPS would."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, name = function.name().split("::")
        if space == "lstm_fused":
            with self:
                return OWN[name](*args)
        if space == "aten" and not runs_on_mps(name):
            raise NotImplementedError(f"MPS has no {name}")
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, result)):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f"MPS has no float64, which {name} meets")
        return result
