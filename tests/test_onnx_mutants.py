"""Randomly changed files: `from_onnx` refuses them, or the module computes what the file does."""

import random
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx_changes import mutant
from onnx_graphs import (
    H,
    I,
    bare,
    classifier,
    constant_nodes,
    coupled,
    differs,
    made_of_sizes,
    one_size,
    state_inputs,
    two_layers,
    two_nodes,
    weights_as_inputs,
)

from lstm_fused import LSTM, SequenceClassifier
from lstm_fused.onnx import export, from_onnx


def originals(folder):
    """Return the models to change."""
    models = [two_layers(), two_layers(layout=1), two_nodes(), one_size(), one_size([6] * 3), classifier()]
    models += [made_of_sizes(), bare(), coupled(2, 1), state_inputs(), weights_as_inputs(), constant_nodes()]
    options = [
        ({}, {}),
        ({"num_layers": 2, "bidirectional": True, "batch_first": True}, {"lengths": True, "states": True}),
        ({"num_layers": 2, "coupled": True}, {"states": True}),
        ({"bidirectional": True, "peephole": False, "bias": False}, {"lengths": True}),
    ]
    for of_module, of_file in options:
        export(LSTM(I, H, **of_module), folder / "model.onnx", **of_file)
        models.append(onnx.load(folder / "model.onnx"))
    export(SequenceClassifier(I, H, 2, 4), folder / "model.onnx", lengths=True)
    return [*models, onnx.load(folder / "model.onnx")]


def search(seed, count, folder, verbose=False):
    """Try mutants; return the wrong ones, the number read, and of these the number no other program runs."""
    torch.manual_seed(seed)
    models, pick = originals(folder), random.Random(seed)
    np.random.seed(seed)
    path = folder / "mutant.onnx"
    wrong, read, alone = [], 0, 0
    for number in range(count):
        data = mutant(models, pick)
        path.write_bytes(data)
        try:
            module = from_onnx(path)
        except ValueError as error:
            if not str(error).startswith("path: expected "):
                wrong.append((number, repr(error)))
            continue
        except Exception as error:
            wrong.append((number, repr(error)))
            continue
        model = onnx.load(path)
        if not all(parameter.abs().max() <= 100 for parameter in module.parameters()):
            continue  # rounding errors grow without bound
        read += 1
        try:
            far = max(differs(module, model, T, B) for T, B in ((6, 3), (4, 2)))
        except Exception as error:
            alone += 1
            if verbose:
                print("alone", number, repr(error)[:300])
            continue
        if far > 1e-4:
            wrong.append((number, far))
    return wrong, read, alone


@pytest.mark.filterwarnings("ignore")  # warnings about the changed files
def test_changed_files_are_refused_or_right(tmp_path):
    wrong, read, alone = search(0, 300, tmp_path)
    assert not wrong and read > 30 and alone < read / 4


if __name__ == "__main__":
    import pathlib
    import tempfile
    import warnings

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        print(search(int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(name), verbose=True))
