"""Kernels run in Triton's interpreter only in a process that started so, and such a process compiles none.

Those processes, one for each folder of such tests, start with the first test in this folder, so that they run
beside the others here.
"""

import os
import subprocess
import sys

import pytest
from interpreted_folders import FOLDERS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["interpreted/*"]


@pytest.fixture(scope="session", autouse=True)
def processes(request, tmp_path_factory):
    """The output and the process of each of those folders that is to be run."""
    outputs = tmp_path_factory.mktemp("interpreted")
    started = {}
    for item in request.session.items:
        folder = item.callspec.params.get("folder") if hasattr(item, "callspec") else None
        if folder not in FOLDERS or INTERPRETED:
            continue
        with (outputs / folder.name).open("w") as output:
            started[folder] = (
                outputs / folder.name,
                subprocess.Popen(
                    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder],
                    env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                ),
            )
    yield started
    for _, process in started.values():
        process.kill()
