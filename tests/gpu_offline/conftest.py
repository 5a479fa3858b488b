"""Kernels run in Triton's interpreter only in a process that started so, and such a process compiles none."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted/*"]
