"""The GPU kernels, installed as `lstm_fused.kernels`.

Choice: plan.py (types and the list of kernels), choose.py, tuned.py.
Kernels: cluster*.py; persistent*.py with exchange.py; cooperative.py; resident.py; step.py with table.py,
product.py and variant.py; the equations and sums of all of them in cell.py and sums.py.
Launches: launch.py (the engine), sequence.py, steps.py, replay.py (CUDA graphs), runtime.py,
launcher.py, scratch.py.
Checks on the card: guard.py, check.py, verdicts.py.

A new kernel is a module with a record, `KERNEL`, and a line in `plan.EXCHANGES`.
"""
