"""The small kernels of samples.metal, compiled once per mode."""

from functools import cache
from pathlib import Path

from .shader import compile_shader, emulated

SAMPLES = (Path(__file__).parent / "samples.metal").read_text()
HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"


@cache
def samples(mode="fast"):
    """The kernels of a mode."""
    with emulated(mode=mode):
        return compile_shader(SAMPLES)


def line_of(text, of):
    """The number of the line that has a text."""
    (line,) = (n for n, found in enumerate(of.split("\n"), 1) if text in found)
    return line
