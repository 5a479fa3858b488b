"""The training example by its command line: output, files, resuming and errors."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import show_gates
import torch
import train_mnist
from files import or_one_line
from matplotlib.image import imread

SETTINGS = ("--limit=100", "--hidden-size=8", "--batch-size=20", "--lr=0.01", "--seed=3")
MACHINE = ("--threads=1", "--device=cpu")
HERE = (f"--threads={torch.get_num_threads()}", "--device=cpu")  # the threads of this process
ABSENT = "cuda" if torch.backends.mps.is_available() else "mps"  # no machine has both


def train(*options, out):
    """Train in a subprocess in which warnings are errors; return its output and the checkpoint."""
    command = [sys.executable, "-W", "error", train_mnist.__file__, f"--out={out}", *MACHINE, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, torch.load(out / "checkpoint.pt", weights_only=True)


def refusal(*options, out, capsys):
    """Return the error message of an invalid command line."""
    with pytest.raises(SystemExit) as stop:
        train_mnist.main([f"--out={out}", *options])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Train one epoch on a few digits; return folder, output and checkpoint."""
    out = tmp_path_factory.mktemp("first")
    return out, *train("--epochs=1", *SETTINGS, out=out)


@pytest.fixture
def copy_of_first(first, tmp_path):
    """Copy its folder, for tests that write to it."""
    return shutil.copytree(first[0], tmp_path / "copy")


def test_one_epoch(first):
    out, printed, state = first
    assert "80 MNIST digits for training and 20 for testing" in printed
    assert re.search(r"Test accuracy \d+\.\d % after 1 epoch\n", printed), printed
    assert len(state["history"]) == 1
    picture = imread(out / "curves.png")
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.02, "the picture is blank"


def test_gates_of_one_digit(first, tmp_path, capsys):
    out, _, _ = first
    assert show_gates.main([f"--out={out}", "--digit=3"]) == 0
    assert capsys.readouterr().out == f"Wrote {out / 'gates_3.png'}\n"
    picture = imread(out / "gates_3.png")
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.02, "the picture is blank"
    for options, message in (
        (["--layer=1"], f"--layer: {out / 'checkpoint.pt'} has layers 0 to 0, got 1"),
        ([f"--out={tmp_path}"], "--out: there is no"),
    ):
        with pytest.raises(SystemExit):
            show_gates.main([f"--out={out}", *options])
        assert message in capsys.readouterr().err


def test_plain_cell_is_the_same_model(first):
    _, printed, _ = first
    assert re.search(r"on the plain cell ~ *\d+\.\d s +\d+\.\d\d ms", printed), printed
    difference = re.search(r"logits differ by\s+(\S+)", printed)
    assert difference, printed
    assert float(difference[1]) < 1e-5


def test_resumed_run_equals_uninterrupted_one(copy_of_first, tmp_path):
    _, whole = train("--epochs=3", *SETTINGS, out=tmp_path / "whole")
    printed, resumed = train("--epochs=3", "--resume", out=copy_of_first)
    assert "Resuming from the checkpoint, after epoch 1" in printed
    assert len(resumed["history"]) == 3
    for epoch in whole["history"] + resumed["history"]:
        del epoch["seconds"]
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hidden-size=16",), "--hidden-size: {path} was trained with 8, and --resume cannot change that"),
        (("--no-peephole",), "--peephole: {path} was trained with True"),
        (("--seed=4", "--epochs=3"), "--seed: {path} was trained with 3"),
    ],
    ids=["hidden-size", "peephole", "seed"],
)
def test_resume_refuses_other_settings(first, options, message, capsys):
    out, _, _ = first
    said = refusal("--resume", *options, out=out, capsys=capsys)
    assert message.format(path=out / "checkpoint.pt") in said


def test_resume_refuses_an_invalid_checkpoint(tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_text("not a checkpoint")
    said = refusal("--resume", out=tmp_path, capsys=capsys)
    assert "checkpoint.pt is not a checkpoint of train_mnist.py" in said


def changed(state, **parts):
    """Replace parts of a checkpoint; None removes a part."""
    return {name: value for name, value in (state | parts).items() if value is not None}


NO_CHECKPOINTS = {
    "a list": (lambda state: [1, 2], "it holds a list"),
    "a tensor": (lambda state: torch.zeros(2), "it holds a Tensor"),
    "no settings": (lambda state: changed(state, settings=None), "KeyError: 'settings'"),
    "a setting less": (
        lambda state: changed(state, settings={"seed": 3}),
        "its settings are seed",
    ),
    "a setting of another kind": (
        lambda state: changed(state, settings=state["settings"] | {"hidden_size": "8"}),
        "hidden_size is '8'",
    ),
    "a setting that cannot be": (
        lambda state: changed(state, settings=state["settings"] | {"batch_size": -1}),
        "batch_size is -1",
    ),
    "history": (lambda state: changed(state, history=[{"loss": 1.0}]), "unexpected keyword argument"),
    "no model": (lambda state: changed(state, model=None), "KeyError: 'model'"),
    "another model": (
        lambda state: changed(state, settings=state["settings"] | {"hidden_size": 16}),
        "Error(s) in loading state_dict for SequenceClassifier:",
    ),
    "no optimizer": (lambda state: changed(state, optimizer={}), "KeyError: 'param_groups'"),
    "random": (lambda state: changed(state, random=torch.zeros(3)), "is not a checkpoint of train_mnist.py"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_malformed_checkpoints_give_one_line(name, first, tmp_path, capsys):
    change, message = NO_CHECKPOINTS[name]
    path = tmp_path / "checkpoint.pt"
    torch.save(change(first[2]), path)
    for program, options in ((train_mnist, ["--resume", *HERE]), (show_gates, [])):
        if program is show_gates and name in ("no optimizer", "random"):
            continue  # show_gates does not read these parts
        said = one_line(program, *options, out=tmp_path, capsys=capsys)
        assert message in said and f"{path} is not a checkpoint of train_mnist.py: " in said


def test_damaged_checkpoints_give_one_line(first, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    whole = (first[0] / "checkpoint.pt").read_bytes()
    half = len(whole) // 2
    for damaged in (
        b"",
        b"\x80",
        whole[:-100],
        whole[:half],
        whole[half:],
        whole[:9] + b"?" * 99 + whole[108:],
    ):
        path.write_bytes(damaged)
        said = refusal("--resume", out=tmp_path, capsys=capsys)
        assert f"{path} is not a checkpoint of train_mnist.py: " in said.splitlines()[-1]


def test_a_folder_instead_of_a_checkpoint_gives_one_line(tmp_path, capsys):
    (tmp_path / "checkpoint.pt").mkdir()
    said = refusal("--resume", out=tmp_path, capsys=capsys)
    assert f"--out: {tmp_path / 'checkpoint.pt'} cannot be read: Is a directory" in said.splitlines()[-1]
    said = one_line(train_mnist, *SETTINGS, *HERE, "--epochs=1", out=tmp_path, capsys=capsys)
    assert said.endswith(f"{tmp_path / 'checkpoint.pt'} cannot be written: Is a directory")
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize("name", ["checkpoint", "curves"])
def test_a_full_disk_gives_one_line_and_leaves_no_file(name, copy_of_first, capsys, monkeypatch):
    monkeypatch.setattr(train_mnist, "RACE_BATCHES", 1)
    path = copy_of_first / f"{name}.{'pt' if name == 'checkpoint' else 'png'}"
    before = {file.name: file.read_bytes() for file in copy_of_first.iterdir()}
    (copy_of_first / f"{name}.new").symlink_to("/dev/full")
    said = one_line(train_mnist, *HERE, "--resume", "--epochs=2", out=copy_of_first, capsys=capsys)
    assert said.endswith(f"{path} cannot be written: No space left on device")
    after = {file.name: file.read_bytes() for file in copy_of_first.iterdir()}
    assert after.keys() == before.keys() and after[path.name] == before[path.name]


def test_a_file_instead_of_a_folder_gives_one_line(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    said = one_line(train_mnist, *SETTINGS, *HERE, "--epochs=1", out=tmp_path / "out", capsys=capsys)
    assert said.endswith(f"{tmp_path / 'out'} cannot be made a folder: File exists")


def one_line(program, *options, out, capsys):
    """Run a program that fails and return its last line; before it there may only be the usage."""
    options = (f"--out={out}", *options)
    try:
        status = or_one_line(lambda: program.main(options))
    except SystemExit as stop:
        status = stop.code
    *before, last = capsys.readouterr().err.splitlines()
    assert status in (1, 2) and all(line.startswith(("usage: ", " ")) for line in before), before
    return last


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--epochs=0", "--epochs: expected a positive integer, got '0'"),
        ("--hidden-size=many", "--hidden-size: expected a positive integer, got 'many'"),
        ("--lr=-1", "--lr: expected a positive number, got '-1'"),
        ("--limit=49", "--limit: expected 50 to 5000, got '49'"),
        ("--engine=fast", "--engine: invalid choice: 'fast'"),
        (f"--device={ABSENT}", f"--device: PyTorch finds no {ABSENT} here"),
        ("--resume", "--out: there is no"),
    ],
    ids=["epochs", "hidden-size", "lr", "limit", "engine", "device", "resume"],
)
def test_bad_option(option, message, tmp_path, capsys):
    assert message in refusal(option, out=tmp_path, capsys=capsys)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        train_mnist.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for option in (
        "device",
        "seed",
        "epochs",
        "hidden-size",
        "num-layers",
        "engine",
        "no-peephole",
        "resume",
    ):
        assert f"--{option}" in said
    assert "torchrun --nnodes 2 --nproc-per-node 8" in said
