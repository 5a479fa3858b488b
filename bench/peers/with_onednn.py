"""oneDNN's own LSTM primitive with its peepholes, forward and backward: onednn.cpp, compiled here."""

import ctypes
import sys
from functools import cache
from pathlib import Path

import numpy as np
from torch.utils.cpp_extension import include_paths

from bench.host.compiler import compiled
from bench.peers.libraries import Arrays

LIBRARY = Path(sys.prefix) / "lib" / "libdnnl.so.3"  # where the package puts it
STATES = ("y", "h_n", "c_n")
PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "weight_peephole_l0")
GRADIENTS = tuple(f"d_{name}" for name in ("x", "h0", "c0", *PARAMETERS))


@cache
def library() -> ctypes.CDLL:
    """onednn.cpp, compiled with the headers that torch has.

    Raises:
        NotImplementedError: there is no C++ compiler, or no header.
    """
    headers = [f"-I{path}" for path in include_paths()]
    try:
        ctypes.CDLL(str(LIBRARY))
        loaded = compiled(Path(__file__).with_name("onednn.cpp"), "-std=c++17", "-O2", *headers, LIBRARY)
    except OSError as error:
        raise NotImplementedError(str(error)) from None
    loaded.make.restype = ctypes.c_char_p
    return loaded


def pointers(arrays: list[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    """Their addresses."""
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


class Program:
    """One layer.

    Args:
        arrays: weights, inputs and gradients by name.
        threads: as many as OpenMP was told when this process began.
    """

    def __init__(self, arrays: Arrays, threads: int) -> None:
        T, B, I = arrays["x"].shape
        H = arrays["weight_hh_l0"].shape[1]
        summed = arrays | {"bias_ih_l0": arrays["bias_ih_l0"] + arrays["bias_hh_l0"]}  # it has one
        names = ("x", "h0", "c0", *PARAMETERS, *(f"d_{name}" for name in STATES))
        self.given = [np.ascontiguousarray(summed[name]) for name in names]
        shapes = [(T, B, H), (1, B, H), (1, B, H), *(array.shape for array in self.given[:-3])]
        self.outputs = [np.empty(shape, np.float32) for shape in shapes]
        self.library, self.layer = library(), ctypes.c_void_p()
        sizes = [ctypes.c_int64(size) for size in (T, B, I, H)]
        reason = self.library.make(*sizes, pointers(self.given), ctypes.byref(self.layer))
        if reason is not None:
            raise NotImplementedError(reason.decode())

    def __del__(self) -> None:
        self.library.drop(self.layer)

    def forward(self) -> Arrays:
        """y, h_n and c_n."""
        self.library.infer(self.layer, pointers(self.outputs[:3]))
        return dict(zip(STATES, self.outputs[:3], strict=True))

    def training(self) -> Arrays:
        """Those and the gradients."""
        self.library.train(self.layer, pointers(self.outputs))
        return dict(zip((*STATES, *GRADIENTS), self.outputs, strict=True))

    def named(self, found: Arrays) -> Arrays:
        """The gradient of one bias is that of the other."""
        return found | ({"d_bias_hh_l0": found["d_bias_ih_l0"]} if "d_bias_ih_l0" in found else {})
