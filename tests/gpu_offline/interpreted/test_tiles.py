"""The program that times every tile, with the only kernel of whole sequences that the interpreter runs."""

import pytest

from bench.gpu import tiles

ARGUMENTS = ["--device", "cpu", "--sizes", "20x17", "--dtypes", "float16"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(tiles, "KERNELS", ("resident",))
    for name, number in {"STEPS": 2, "CHECKED_STEPS": 3, "ROUNDS": 2}.items():
        monkeypatch.setattr(tiles, name, number)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        tiles.main([*ARGUMENTS, *arguments])
    return ended.value.code, capsys.readouterr().out.splitlines()


def test_every_tile_is_timed(capsys):
    code, lines = run(capsys)
    assert not code and [line.split()[0] for line in lines] == ["forward", "backward"]
    assert all("H 20 B 17 float16" in line and "us (" in line and "resident, 16x32" in line for line in lines)


def test_parts_check_each_tile_once(capsys):
    found = [run(capsys, "--part", f"{part}/2") for part in range(2)]
    assert not any(code for code, _ in found)
    lines = [line for _, part in found for line in part]
    assert len(lines) == 2 and all(line.startswith("ok ") for line in lines)


def test_a_wrong_tile_is_told(capsys, monkeypatch):
    prepared = tiles.prepared

    def wrong(given, direction):
        run = prepared(given, direction)
        return lambda plan: tuple(tensor * 1.5 for tensor in run(plan))

    monkeypatch.setattr(tiles, "prepared", wrong)
    code, (line,) = run(capsys, "--part", "0/2")
    assert code == 1 and line.startswith("BAD")
