"""The examples in the docstrings of what is public are right, and the API reference lists all of it."""

import doctest
import inspect
import re
from pathlib import Path

import pytest
import torch

import lstm_fused
from lstm_fused import convert, onnx, plot, testing

REFERENCE = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
MODULES = {
    "lstm_fused": lstm_fused,
    "lstm_fused.onnx": onnx,
    "lstm_fused.convert": convert,
    "lstm_fused.testing": testing,
}
PUBLIC = {
    f"{prefix}.{name}": getattr(module, name) for prefix, module in MODULES.items() for name in module.__all__
}
PUBLIC |= {f"lstm_fused.plot.{name}": getattr(plot, name) for name in ("draw_gates", "similarity_order")}
# Those that users do not make themselves.
WITHOUT_EXAMPLE = {
    *("lstm_fused.Gates", "lstm_fused.ArgumentError", "lstm_fused.SlowEngineWarning"),
    *("lstm_fused.Choice", "lstm_fused.Report", "lstm_fused.testing.CASES", "lstm_fused.testing.Case"),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_are_right(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = PUBLIC[name]
    names = {"torch": torch, "lstm_fused": lstm_fused} | vars(inspect.getmodule(found) or lstm_fused)
    tests = doctest.DocTestFinder(exclude_empty=True).find(found, name, globs=names)
    runner, tried = doctest.DocTestRunner(), 0
    for test in tests:
        assert runner.run(test).failed == 0
        tried += len(test.examples)
    assert bool(tried) == (name not in WITHOUT_EXAMPLE)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_reference_takes_no_description_for_a_type(name):
    """Sphinx takes what stands before a colon under "Returns:" for the type."""
    found = PUBLIC[name]
    methods = [m for _, m in inspect.getmembers(found, inspect.isroutine) if inspect.isclass(found)]
    ours = [m for m in methods if (getattr(m, "__module__", None) or "").startswith("lstm_fused")]
    for text in filter(None, map(inspect.getdoc, (found, *ours))):
        described = re.search(r"^Returns:\n(.*?)(\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
        assert not described or ":" not in re.sub(r"``.*?``", "", described[1]), described[1]


def test_the_reference_lists_all_that_is_public():
    assert [name for name in PUBLIC if f":: {name}\n" not in REFERENCE] == []
