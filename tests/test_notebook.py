"""The notebook of examples/ runs from top to bottom, and its committed outputs belong to its sources."""

import json
from time import process_time

import pytest
import run_notebook
import torch
from run_notebook import NOTEBOOK, code_cells, fingerprint, run

COMMITTED = json.loads(NOTEBOOK.read_text())
LONGEST = 180  # seconds of processor time, of which a busy machine takes no more
LARGEST = 400_000  # bytes


def kinds(outputs):
    return [(output["output_type"], *output.get("data", ())) for output in outputs]


def test_the_notebook_runs_from_top_to_bottom():
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    start = process_time()
    try:
        made = run(COMMITTED, {})
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(rng)
    assert process_time() - start < LONGEST
    assert [*map(kinds, made)] == [kinds(cell["outputs"]) for cell in code_cells(COMMITTED)]
    printed = "".join(line for outputs in made for output in outputs for line in output.get("text", ()))
    assert "spikes at the steps [10, 20, 30]\n" in printed and "299 steps back" in printed


def test_the_committed_outputs_belong_to_the_sources():
    cells = code_cells(COMMITTED)
    assert COMMITTED["metadata"]["lstm_fused"]["sources"] == fingerprint(COMMITTED), (
        "run examples/run_notebook.py --write"
    )
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert sum(bool(cell["outputs"]) for cell in cells) >= 7
    assert NOTEBOOK.stat().st_size < LARGEST


def notebook(*sources, **metadata):
    return {"cells": [{"cell_type": "code", "metadata": metadata, "source": [source]} for source in sources]}


def test_another_source_has_another_fingerprint():
    assert fingerprint(notebook("a", "b")) != fingerprint(notebook("ab")) != fingerprint(notebook("a", "c"))


def test_outputs_are_what_a_cell_prints_draws_and_ends_with():
    source = "from matplotlib import pyplot\nprint('said')\n_ = pyplot.subplots(2)\nif n:\n    n + 1\nn"
    (_, outputs) = run(notebook("n = 1", source, tags=["parameters"]), {"n": 5})
    assert kinds(outputs) == [("stream",), ("execute_result", "text/plain"), ("display_data", "image/png")]
    assert outputs[1]["data"]["text/plain"] == ["5"] and outputs[0]["text"] == ["said\n"]
    ((figure,),) = run(notebook("from matplotlib.figure import Figure\nFigure()"), {})
    assert kinds([figure]) == [("display_data", "image/png")]


def test_an_error_ends_the_run():
    with pytest.raises(ZeroDivisionError):
        run(notebook("1 / 0"), {})


def test_outputs_are_stored(tmp_path, monkeypatch, capsys):
    path = tmp_path / "notebook.ipynb"
    path.write_text(json.dumps(notebook("print('said')") | {"metadata": {}}))
    monkeypatch.setattr(run_notebook, "NOTEBOOK", path)
    assert run_notebook.main([]) == 0 and "outputs" not in path.read_text()
    assert run_notebook.main(["--write"]) == 0
    written = json.loads(path.read_text())
    (cell,) = written["cells"]
    assert cell["execution_count"] == 1 and cell["outputs"][0]["text"] == ["said\n"]
    assert written["metadata"]["lstm_fused"] == {"sources": fingerprint(written)}
    assert capsys.readouterr().out.startswith("said\nsaid\nWrote notebook.ipynb")
