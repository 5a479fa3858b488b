"""`export` and `from_onnx` with invalid paths, modules and files: errors and files left behind."""

import errno
import os

import numpy as np
import onnx
import pytest
import torch
from onnx import external_data_helper
from onnx_graphs import bare, two_layers
from torch import nn

from lstm_fused import LSTM, SequenceClassifier
from lstm_fused.onnx import export, from_onnx

OURS = (
    r"an LSTM or a SequenceClassifier of lstm_fused \(models that hold them: torch.onnx.export with "
    r"custom_translation_table=lstm_fused.onnx.translation_table\(\)\), got "
)
HEAD = "a Linear over one direction's last state in a SequenceClassifier, got "


def replaced(part, module):
    """Return a classifier with a part replaced."""
    model = SequenceClassifier(5, 7, 1, 4)
    setattr(model, part, module)
    return model


def half_double():
    module = LSTM(5, 7)
    module.weight_hh_l0.data = module.weight_hh_l0.data.double()
    return module


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.LSTM(5, 7), OURS + "torch.nn.modules.rnn.LSTM"),
        (
            LSTM(5, 7).state_dict(),
            OURS + "collections.OrderedDict",
        ),
        (None, OURS + "builtins.NoneType"),
        (replaced("lstm", nn.LSTM(5, 7)), OURS + "torch.nn"),
        (
            replaced("lstm", LSTM(5, 7, bidirectional=True)),
            HEAD,
        ),
        (replaced("head", nn.Identity()), HEAD),
        (
            replaced("head", nn.Linear(6, 4)),
            HEAD,
        ),
        (replaced("head", nn.Linear(7, 4).double()), "one of float16, .* got torch.float32, torch.float64"),
        (half_double(), "one of float16, float32 or float64, .* got torch.float32, torch.float64"),
        (LSTM(5, 7, device="meta"), "parameters that have values, got device meta"),
    ],
)
def test_export_refuses_other_modules(module, message, tmp_path):
    with pytest.raises(ValueError, match=f"module: expected {message}"):
        export(module, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argument", ["lengths", "states"])
def test_export_refuses_invalid_flags(argument, tmp_path):
    with pytest.raises(ValueError, match=f"{argument}: expected True or False, got 'no'"):
        export(LSTM(5, 7), tmp_path / "model.onnx", **{argument: "no"})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", "the path of a file, got .*, which is not a file"),
        (os.devnull, "the path of a file, got /dev/null, which is not a file"),
        (None, "the path of a file, got None"),
        (3, "the path of a file, got 3"),
        (b"model.onnx", "the path of a file, got b'model.onnx'"),
        ("a\0b", "the path of a file, got 'a.*b'"),
    ],
)
def test_export_refuses_invalid_paths(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"path: expected {message}"):
        export(LSTM(5, 7), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("path", "error"), [("no/model.onnx", FileNotFoundError), ("x" * 300, OSError)])
def test_system_errors_are_passed_on(path, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        export(LSTM(5, 7), path)
    with pytest.raises(error):
        from_onnx(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_export_keeps_the_old_file(error, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    export(LSTM(5, 7), path)
    before = path.read_bytes()

    def save(model, part):
        with open(part, "wb") as file:
            file.write(b"part")
        raise error

    monkeypatch.setattr(onnx, "save", save)
    with pytest.raises(type(error)):
        export(LSTM(5, 7, 2), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_export_writes_through_a_link_and_in_the_format_of_its_name(tmp_path):
    (tmp_path / "folder").mkdir()
    link, path = tmp_path / "link.json", tmp_path / "folder" / "model.json"
    link.symlink_to(path)
    module = LSTM(5, 7)
    export(module, link)
    assert link.is_symlink() and path.read_text().startswith("{")
    assert torch.equal(from_onnx(link).weight_hh_l0, module.weight_hh_l0)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
def test_export_accepts_parametrized_weights_of_both_kinds_and_of_the_head(name, tmp_path):
    model = SequenceClassifier(5, 7, 1, 4)
    nn.utils.parametrizations.weight_norm(model.lstm, name)
    nn.utils.parametrizations.weight_norm(model.head)
    export(model, tmp_path / "model.onnx")
    same, x = from_onnx(tmp_path / "model.onnx"), torch.randn(3, 6, 5)
    torch.testing.assert_close(same(x), model(x))


@pytest.mark.parametrize("path", [None, 3, b"model.onnx", os.devnull, "a\0b"])
def test_from_onnx_refuses_invalid_paths(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"path: expected (the path of an|a valid) ONNX file, got "):
        from_onnx(path)


@pytest.mark.parametrize("data", [b"", b"\n", b"not one", bytes(range(256)), b"\x08" * 1000])
def test_from_onnx_refuses_other_files(data, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"path: expected a valid ONNX file, got \w+: "):
        from_onnx(path)
    path.with_suffix(".json").write_bytes(data)
    with pytest.raises(ValueError, match=r"path: expected a valid ONNX file, got \w+: "):
        from_onnx(path.with_suffix(".json"))


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(bare(), path)
    data = path.read_bytes()
    for end in range(0, len(data), 37):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"path: expected "):
            from_onnx(path)


def test_large_data_beside_the_file_is_read_or_refused(tmp_path, monkeypatch):
    model = two_layers()
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    external_data_helper.convert_model_to_external_data(model, location="data", size_threshold=100)
    for value in model.graph.output:
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, 1, ["a", "b", "c"]))
    (tmp_path / "folder").mkdir()
    onnx.save(model, tmp_path / "folder" / "model.onnx")
    monkeypatch.chdir(tmp_path)
    module = from_onnx("folder/model.onnx")
    np.testing.assert_array_equal(module.weight_hh_l1[:7].detach(), arrays["R1"][0, :7])
    os.truncate("folder/data", 500)
    with pytest.raises(ValueError, match=r"path: expected "):
        from_onnx("folder/model.onnx")
    os.remove("folder/data")
    with pytest.raises(ValueError, match=r"path: expected a valid ONNX file, got ValidationError: Data of"):
        from_onnx("folder/model.onnx")
