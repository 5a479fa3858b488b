"""Runs functions in a fresh process, which starts with environment variables of its own."""

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from unittest.mock import patch


@contextmanager
def fresh_process(**variables: str) -> Iterator[Executor]:
    """Start a process with these environment variables; what it prints goes to standard error."""
    with ProcessPoolExecutor(1, get_context("spawn"), os.dup2, (2, 1)) as pool:
        with patch.dict(os.environ, variables):
            pool.submit(os.getpid).result()  # starts it
        yield pool
