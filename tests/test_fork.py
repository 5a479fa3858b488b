"""Children of a process that has computed in parallel: they train, on as many threads, to the same bits."""

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
SECONDS = 60  # in which even a busy machine's child is done; then it hangs


def trained(threads=2, seed=0):
    """What a step of training yields, of a size that engine and products share among threads."""
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
    """The exit status of a child that does this: 0 if it is true, -SIGALRM if it hangs."""
    pid = os.fork()
    if pid == 0:
        status = 2
        signal.alarm(SECONDS)  # also ends one that hangs in C++, and whose parent is gone
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


def test_a_child_trains_on_two_threads_to_the_same_bits():
    expected = trained()
    assert child(lambda: same(expected)) == 0
    assert same(expected), "the parent goes on"


def test_a_child_of_a_parent_whose_products_alone_ran_in_parallel():
    torch.set_num_threads(2)
    a = torch.randn(600, 600)
    product = a @ a
    assert child(lambda: torch.equal(a @ a, product) and len(trained()) > 0) == 0


def test_a_child_of_a_child_and_several_at_once():
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


def test_a_child_of_a_thread_that_ran_in_parallel_itself():
    expected, statuses = trained(), []

    def work():
        assert same(expected)
        statuses.append(child(lambda: same(expected)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert statuses == [0]


def test_forks_while_another_thread_is_inside_the_operator():
    torch.set_num_threads(2)
    # Made before: torch.manual_seed holds a lock of Python's, which a child would wait for.
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


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted as Linux lists them")
def test_before_anything_ran_the_child_really_has_two_threads():
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


def test_many_forks_cost_the_parent_no_memory():
    import resource

    def rounds(n):
        for _ in range(n):
            trained()
            assert child(lambda: True) == 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    few = rounds(5)
    assert rounds(20) < 1.02 * few


class Trained(Dataset):
    """A data set whose every item takes a step of training, on two threads."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return trained(seed=index)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_of_a_data_loader_that_train(method):
    data = Trained()
    expected = [data[i] for i in range(len(data))]
    workers = 2 if method == "fork" else 1  # which takes no time
    loader = DataLoader(
        data, batch_size=None, num_workers=workers, multiprocessing_context=method, timeout=SECONDS
    )
    for ours, value in zip(loader, expected, strict=True):
        assert all(map(torch.equal, ours, value))
