"""Runs Metal kernels on the CPU: their text compiled as C++, and PyTorch's way of calling them.

``shader.py`` stands in for ``torch.mps.compile_shader``, ``source.py`` reads the kernels' signatures, ``build.py``
compiles, ``include/`` is the Metal standard library in C++, and ``runtime.cpp`` runs the threads of a grid.
"""
