"""Forked children of a process that has computed in parallel train on as many threads, with equal bits."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lstm_fused import LSTM
from lstm_fused.backends import cpp

if not hasattr(os, "fork"):
    pytest.skip("no fork on this system", allow_module_level=True)
if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
SECONDS = 60  # a child that takes longer hangs


def trained(threads=2, seed=0):
    """Return the results of a training step large enough for several threads in engine and products."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return step(LSTM(65, 130), torch.randn(9, 37, 65, requires_grad=True))


def step(module, x):
    y, (h, c) = module(x)
    loss = y.sin().sum() + h.sum() + c.sum()
    return [y.detach(), *torch.autograd.grad(loss, [x, *module.parameters()])]


def threads_used():
    return len(os.listdir("/proc/self/task"))


def child(work):
    """Fork, run ``work`` in the child and return its exit status: 0 if true, -SIGALRM if it hangs."""
    pid = os.fork()
    if pid == 0:
        status = 2
        signal.alarm(SECONDS)  # also ends a child that hangs in C++ or has lost its parent
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def same(expected, **options):
    return all(map(torch.equal, trained(**options), expected))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_child_trains_on_two_threads_with_equal_bits():
    expected = trained()
    assert child(lambda: same(expected)) == 0
    assert same(expected), "the parent still computes"


def test_a_child_of_a_parent_with_parallel_matrix_products():
    torch.set_num_threads(2)
    a = torch.randn(600, 600)
    product = a @ a
    assert child(lambda: torch.equal(a @ a, product) and len(trained()) > 0) == 0


def test_nested_and_concurrent_children():
    expected = trained()

    def with_child():
        return same(expected) and child(lambda: same(expected)) == 0 and same(expected)

    statuses = []
    parents = [threading.Thread(target=lambda: statuses.append(child(with_child))) for _ in range(2)]
    for parent in parents:
        parent.start()
    for parent in parents:
        parent.join()
    assert statuses == [0, 0]


def test_a_child_of_a_python_thread():
    expected, statuses = trained(), []

    def work():
        assert same(expected)
        statuses.append(child(lambda: same(expected)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert statuses == [0]


def test_forks_while_another_thread_runs_the_operator():
    torch.set_num_threads(2)
    # Created before forking: torch.manual_seed holds a Python lock, and a child would wait for it.
    module, x = LSTM(65, 130), torch.randn(9, 37, 65, requires_grad=True)
    expected, stop, wrong = step(module, x), threading.Event(), []

    def right():
        return all(map(torch.equal, step(module, x), expected))

    def train():
        while not stop.is_set():
            wrong.extend([] if right() else ["another result"])

    thread = threading.Thread(target=train)
    thread.start()
    try:
        statuses = [child(right) for _ in range(5)]
    finally:
        stop.set()
        thread.join()
    assert statuses == [0] * 5
    assert not wrong


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in Linux's /proc")
def test_a_child_of_an_idle_parent_has_two_threads():
    program = (
        "from test_fork import child, threads_used, trained; before = threads_used()\n"
        "print(child(lambda: bool(trained()) and threads_used() > before))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
    )
    assert done.stdout.strip() == "0", done.stdout + done.stderr


def test_many_forks_leak_no_memory():
    import resource

    def rounds(n):
        for _ in range(n):
            trained()
            assert child(lambda: True) == 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    few = rounds(5)
    assert rounds(20) < 1.02 * few


class Trained(Dataset):
    """A data set that trains on two threads for each item."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return trained(seed=index)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_data_loader_workers_train(method):
    data = Trained()
    expected = [data[i] for i in range(len(data))]
    workers = 2 if method == "fork" else 1  # to save time
    loader = DataLoader(
        data, batch_size=None, num_workers=workers, multiprocessing_context=method, timeout=SECONDS
    )
    for ours, value in zip(loader, expected, strict=True):
        assert all(map(torch.equal, ours, value))
