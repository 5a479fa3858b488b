"""Puts the package together from links, for a Python that installs nothing: python3 -m bench.gpu.link FOLDER.

Then FOLDER, on PYTHONPATH, holds lstm_fused with its kernels and its version, but without the C++ engine.
Needs nothing but Python.
"""

import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def link(folder: Path) -> None:
    """Link all of the package there, in place of what was linked before."""
    package, about = folder / "lstm_fused", folder / "lstm_fused-0.dist-info"
    for old in (package, about):
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir(parents=True)
    for source in (*(ROOT / "lstm_fused").iterdir(), ROOT / "kernels"):
        if source.name != "__pycache__" and source.suffix != ".so":
            (package / source.name).symlink_to(source)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    # The package asks for its own version when it is imported.
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lstm_fused\nVersion: {version}\n")


if __name__ == "__main__":
    link(Path(sys.argv[1]).resolve())
