"""Kernels run in Triton's interpreter only in a process that started so, and such a process compiles none.

Those processes start with the first test in this folder, so that they run beside the others here.
"""

import os
import subprocess
import sys

import pytest
from interpreted_modules import MODULES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["interpreted/*"]


@pytest.fixture(scope="session", autouse=True)
def processes(request, tmp_path_factory):
    """The output and the process of each of those modules that is to be run."""
    folder = tmp_path_factory.mktemp("interpreted")
    started = {}
    for item in request.session.items:
        module = item.callspec.params.get("module") if hasattr(item, "callspec") else None
        if module not in MODULES or INTERPRETED:
            continue
        with (folder / module.stem).open("w") as output:
            started[module] = (
                folder / module.stem,
                subprocess.Popen(
                    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", module],
                    env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                ),
            )
    yield started
    for _, process in started.values():
        process.kill()
