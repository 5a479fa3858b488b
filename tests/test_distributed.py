"""Two processes, started by torchrun, train like one process on the whole batch."""

import os
import subprocess
import sys

import distributed_worker
import pytest
import torch
import train_mnist


def torchrun(*command):
    """Run a program in two processes; return their output."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *command], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("states") / "states.pt"
    torchrun(distributed_worker.__file__, str(out))
    return torch.load(out)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained peepholes", "frozen peepholes"])
@pytest.mark.parametrize("way", distributed_worker.WAYS)
def test_a_step_equals_that_of_one_process_and_its_state_dict_loads(found, way, frozen):
    state, loaded = found[way, frozen]
    model = distributed_worker.make_model(frozen)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    distributed_worker.step(model, *distributed_worker.make_batch())
    assert state.keys() == loaded.keys() == before.keys()
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(state[name], expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(state[name], before[name]) == (frozen and "peephole" in name), name
        assert torch.equal(state[name], loaded[name]), name


def test_the_example_trains_in_two_processes_like_in_one(tmp_path):
    options = ("--epochs=1", "--limit=70", "--hidden-size=8", "--batch-size=19", "--device=cpu")
    printed = torchrun(train_mnist.__file__, f"--out={tmp_path / 'two'}", *options)
    assert printed.count("Test accuracy") == printed.count("epoch     loss") == 1
    assert "2 processes, each with its share of every batch" in printed
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"checkpoint.pt", "curves.png"}
    train_mnist.main([f"--out={tmp_path / 'one'}", *options])
    two, one = (torch.load(tmp_path / name / "checkpoint.pt")["history"][0] for name in ("two", "one"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    assert two["test_loss"] == pytest.approx(one["test_loss"], rel=1e-5)
    assert two["train_accuracy"] == one["train_accuracy"]
