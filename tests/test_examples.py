"""The studies in examples/ with their smallest sizes: data, results and figures."""

import math
import os
import re
import signal
import time
from concurrent.futures.process import BrokenProcessPool

import char_lm
import gaps
import japanese_vowels
import look_back
import pytest
import study
import timing
import torch
import vowels
from matplotlib.image import imread


def run_quick(main, out, capsys):
    """Run a study with --quick; check its figure and its file, and return its output."""
    assert main(["--quick", "--jobs=1", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    (picture,) = out.glob("*.png")
    (written,) = out.glob("*.md")
    assert imread(picture)[..., :3].std() > 0.02, "the picture is blank"
    assert written.read_text() in printed
    return printed


def test_look_back(tmp_path, capsys):
    printed = run_quick(look_back.main, tmp_path, capsys)
    recall = next(line for line in printed.splitlines() if line.startswith("| recall | 5 |"))
    assert recall.count("1 of 1") == 3, "every model can look back over five steps"


def test_gradients_vanish_explode_or_survive():
    T = 200
    norms = look_back.untrained_gradients(T)
    # The norm at the second step relative to the last.
    kept = {model: values[T - 2] / values[0] for model, values in norms.items()}
    assert kept["nn.RNN"] < 1e-30 and kept["LSTM, forget bias near 0"] < 1e-30
    assert kept["nn.RNN, weight_hh × 6"] > 1e10
    assert 1e-3 < kept["LSTM"] < 10 and 1e-3 < kept["peephole LSTM"] < 10


@pytest.mark.parametrize("T", [4, 5, 100])
def test_adding_marks_two_numbers_in_the_first_half(T):
    x, y = gaps.draw_adding(T, 50, torch.Generator().manual_seed(0))
    marks = x[..., 1]
    assert (marks.sum(0) == 2).all() and not marks[T // 2 :].any()
    torch.testing.assert_close((x[..., 0] * marks).sum(0), y[:, 0])


def test_timing(tmp_path, capsys):
    printed = run_quick(timing.main, tmp_path, capsys)
    measuring = [line for line in printed.splitlines() if line.startswith("| measuring")]
    assert measuring and all(line.count("1 of 1") == 3 for line in measuring), printed


def test_the_vowels_are_complete():
    train, test = vowels.load()
    assert train.y.bincount().tolist() == [30] * 9
    assert test.y.bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    for part in (train, test):
        assert part.x.shape[2] == 12 and part.x.shape[1] == part.lengths.max()
        padding = torch.arange(part.x.shape[1]) >= part.lengths[:, None]
        assert not part.x[padding].any() and part.x[~padding].any(1).all()
    lengths = torch.cat([train.lengths, test.lengths])
    assert (lengths.min(), lengths.max()) == (7, 29)
    assert train.x[0, 0, :2].tolist() == pytest.approx([1.860936, -0.207383])


def test_japanese_vowels(tmp_path, capsys):
    printed = run_quick(japanese_vowels.main, tmp_path, capsys)
    accuracies = [float(share) for share in re.findall(r"\| 1 \| (\d+\.\d) %", printed)]
    assert len(accuracies) == 2 and min(accuracies) > 100 * 3 / 9, printed


def test_char_lm(tmp_path, capsys):
    printed = run_quick(char_lm.main, tmp_path, capsys)
    found, packed, by_many, by_one = map(float, re.findall(r"\| (\d+\.\d+) \|", printed))
    assert found < 4.5 and packed < 4.5, printed
    assert by_one == pytest.approx(by_many, abs=2e-5), "carried states change the result"
    assert "```text\nThe " in printed


def test_windows_are_consecutive():
    text = torch.arange(101)
    pieces = list(char_lm.windows(text, streams=4, length=10))
    now = torch.cat([piece for piece, _ in pieces])
    following = torch.cat([piece for _, piece in pieces])
    assert (following == now + 1).all()
    assert (now[1:] == now[:-1] + 1).all(), "a stream has a gap"
    assert now.T.flatten().tolist() == list(range(100))


def test_bits_per_letter_of_an_untrained_model():
    model = char_lm.Writer(16, 8)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    text = torch.randint(16, (77,), generator=torch.Generator().manual_seed(0))
    assert char_lm.bits_per_letter(model, text, 10) == pytest.approx(math.log2(16))


def test_results_do_not_depend_on_the_number_of_processes():
    plan = japanese_vowels.Plan(epochs=2, cells=3)
    tasks = [japanese_vowels.Task(plan, peephole=True, seed=seed) for seed in (0, 1)]
    assert study.run(japanese_vowels.train, tasks, jobs=1) == study.run(japanese_vowels.train, tasks, jobs=2)


def press_ctrl_c(_task):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)


def test_ctrl_c_ends_a_study(capsys):
    with pytest.raises(BrokenProcessPool):  # the worker ends instead of taking the next task
        study.run(press_ctrl_c, [1, 2, 3], jobs=2)

    def interrupted():
        raise KeyboardInterrupt

    assert study.until_interrupted(interrupted) == 130
    assert "Stopped" in capsys.readouterr().out


def test_a_study_that_cannot_write_gives_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        study.options("", 1, [f"--out={tmp_path / 'file'}"])
    assert f"--out: {tmp_path / 'file'} cannot be made a folder: File exists" in capsys.readouterr().err

    opts = study.Options("quick", 1, 1, tmp_path / "absent", publish=False)
    figure, _ = study.panels(1, 1, "")
    assert study.until_interrupted(lambda: study.report(opts, "name", "a table", figure)) == 1
    said = capsys.readouterr()
    assert "a table" in said.out, "the table is printed nevertheless"
    (line,) = said.err.splitlines()
    assert line.endswith(f"{tmp_path / 'absent' / 'name.md'} cannot be written: No such file or directory")


def test_publishing_replaces_the_section():
    page = study.README.read_text()
    for name in ("look_back", "timing", "japanese_vowels", "char_lm"):
        once = study.published(page, name, "2 of 3 seeds")
        assert once.count("2 of 3 seeds") == 1
        twice = study.published(once, name, "3 of 3 seeds")
        assert twice.count("3 of 3 seeds") == 1 and "2 of 3 seeds" not in twice
        assert twice.startswith(page[: page.index(f"<!-- {name}")])
        assert twice.endswith(page[page.index(f"<!-- end of {name}") :])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--jobs=0", "--jobs: expected at least 1, got 0"),
        ("--seeds=-1", "--seeds: expected at least 1, got -1"),
    ],
)
def test_bad_option(option, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        timing.main([option, f"--out={tmp_path}"])
    assert message in capsys.readouterr().err
