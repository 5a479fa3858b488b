"""Runs Metal kernels on the CPU: their text compiled as C++, and PyTorch's way of calling them.

shader.py stands in for torch.mps.compile_shader, source.py reads the kernels' signatures, build.py compiles
them in several modes. include/ is Metal's library in C++; runtime.cpp runs the threads of a grid as fibres,
races.cpp detects races, replay.cpp repeats dispatches under a sanitizer. functions.py lists what of Metal our
kernels may use.
"""
