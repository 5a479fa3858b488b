"""Each test starts like a new process on a machine with a GPU and no verdicts."""

import pytest
from guarded import Launched, forget, right
from lstm_fused.kernels import check

from lstm_fused.backends import table


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch, tmp_path):
    """Triton stands first, nothing is known, and what is found stays in a folder of this test."""
    monkeypatch.setenv("LSTM_FUSED_GPU", "auto")
    monkeypatch.setenv("LSTM_FUSED_CACHE", str(tmp_path / "verdicts"))
    monkeypatch.delenv("LSTM_FUSED_KERNEL", raising=False)
    monkeypatch.setattr(table, "ENGINES", (table.TRITON, table.REFERENCE))
    forget()
    yield
    forget()


@pytest.fixture
def checks(monkeypatch):
    """The plans that are checked, in order."""
    done, plain = [], check.check
    monkeypatch.setattr(
        check, "check", lambda *a: [done.append(f"{a[1].direction} {a[0].kernel}"), plain(*a)][1]
    )
    return done


@pytest.fixture
def launched(monkeypatch):
    found = Launched(monkeypatch)
    for direction in ("forward", "backward"):
        for kernel in ("resident", "step"):
            found.plant(direction, kernel, right)
    return found
