"""oneDNN's own LSTM primitive with its peepholes, forward and backward: onednn.cpp, compiled here."""

import ctypes
import sys
from functools import cache
from pathlib import Path

import numpy as np
from torch.utils.cpp_extension import include_paths

from bench.host.compiler import compiled
from bench.peers.libraries import OUTPUTS, Arrays, Program

LIBRARY = Path(sys.prefix) / "lib" / "libdnnl.so.3"  # where the package puts it
GIVEN = ("x", "h0", "c0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "weight_peephole_l0")


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


def named(found: Arrays) -> Arrays:
    """The gradient of one bias is that of the other."""
    return found | ({"d_bias_hh_l0": found["d_bias_ih_l0"]} if "d_bias_ih_l0" in found else {})


def program(arrays: Arrays, threads: int) -> Program:
    """One layer, on as many threads as OpenMP was told when this process began."""
    T, B, I = arrays["x"].shape
    H = arrays["weight_hh_l0"].shape[1]
    summed = arrays | {"bias_ih_l0": arrays["bias_ih_l0"] + arrays["bias_hh_l0"]}  # it has one
    given = [np.ascontiguousarray(summed[name]) for name in (*GIVEN, *(f"d_{name}" for name in OUTPUTS))]
    shapes = [(T, B, H), (1, B, H), (1, B, H), *(array.shape for array in given[: len(GIVEN)])]
    outputs = {
        name: np.empty(shape, np.float32)
        for name, shape in zip((*OUTPUTS, *(f"d_{name}" for name in GIVEN)), shapes, strict=True)
    }
    layer, sizes = ctypes.c_void_p(), [ctypes.c_int64(size) for size in (T, B, I, H)]
    if (reason := library().make(*sizes, pointers(given), ctypes.byref(layer))) is not None:
        raise NotImplementedError(reason.decode())

    def call(function: str, count: int) -> Arrays:
        """Run it; ``given`` has to outlive the layer."""
        assert given
        library()[function](layer, pointers([*outputs.values()][:count]))
        return dict([*outputs.items()][:count])

    return Program(lambda: call("infer", len(OUTPUTS)), lambda: call("train", len(outputs)), named)
