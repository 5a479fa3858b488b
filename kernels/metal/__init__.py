"""The Metal kernels for Apple GPUs: plan.py (choice), library.py (compilation), launch.py (the engine).

dispatches.py hands the kernels their arguments. The sources are cell.metal (equations), step.metal with
norm.metal, and resident.metal. No kernel waits for another threadgroup.
"""
