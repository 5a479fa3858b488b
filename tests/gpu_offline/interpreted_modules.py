"""Modules whose tests run in Triton's interpreter."""

from pathlib import Path

HERE = Path(__file__).parent
ON_GPU_ALONE = "test_cuda.py"
MODULES = [
    path
    for folder in (HERE / "interpreted", HERE.parent / "gpu")
    for path in sorted(folder.glob("test_*.py"))
    if path.name != ON_GPU_ALONE
]
