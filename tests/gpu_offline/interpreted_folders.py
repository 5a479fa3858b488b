"""Folders whose tests run in Triton's interpreter."""

from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = (HERE / "interpreted", HERE.parent / "gpu")
