"""Run examples/peephole_lstm.ipynb without Jupyter: see --help.

A cell's outputs are what it prints, its figures and the value of its last line. --write stores them in the
notebook, with a hash of the sources that made them.
"""

import argparse
import ast
import base64
import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from files import or_one_line, write
from matplotlib.figure import Figure

NOTEBOOK = Path(__file__).with_name("peephole_lstm.ipynb")
DPI = 70
Cell = dict[str, Any]


def code_cells(notebook: Mapping[str, Any]) -> list[Cell]:
    """Return the cells that run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def fingerprint(notebook: Mapping[str, Any]) -> str:
    """Return a hash of the source of all code cells."""
    sources = ["".join(cell["source"]) for cell in code_cells(notebook)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def run(notebook: Mapping[str, Any], parameters: Mapping[str, object]) -> list[list[dict[str, Any]]]:
    """Run all cells from top to bottom and return the outputs of each code cell.

    Args:
        notebook: the notebook.
        parameters: values of names of the cell that is tagged "parameters", in place of its own.
    """
    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        outputs.append(run_cell("".join(cell["source"]), number, names))
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= parameters
    return outputs


def run_cell(source: str, number: int, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one cell; return its outputs as a notebook stores them."""
    from matplotlib import pyplot

    tree, value = ast.parse(source), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    place, printed = f"cell {number}", io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, place, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), place, "eval"), names)
    outputs: list[dict[str, Any]] = []
    data: dict[str, Any]
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    figures = [pyplot.figure(shown) for shown in pyplot.get_fignums()]
    if isinstance(value, Figure):
        figures.append(value)
    elif value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        result = {"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}
        outputs.append(result)
    for figure in figures:
        data = {"image/png": png(figure)}
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    pyplot.close("all")
    return outputs


def png(figure: Figure) -> str:
    """Return a figure as notebooks store it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the notebook and print or store its outputs; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebook")
    args = parser.parse_args(argv)
    notebook = json.loads(NOTEBOOK.read_text())
    every = run(notebook, {})
    for number, (cell, outputs) in enumerate(zip(code_cells(notebook), every, strict=True), start=1):
        print("".join("".join(output.get("text", ())) for output in outputs), end="")
        cell |= {"execution_count": number, "outputs": outputs}
    if args.write:
        notebook["metadata"]["lstm_fused"] = {"sources": fingerprint(notebook)}
        write(NOTEBOOK, f"{json.dumps(notebook, indent=1, ensure_ascii=False)}\n".encode())
        print(f"Wrote {NOTEBOOK.name}")
    return 0


if __name__ == "__main__":
    sys.exit(or_one_line(main))
