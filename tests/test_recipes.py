"""The Python code of the Markdown pages runs, and the recipes do what they say."""

import re
from pathlib import Path

import onnxruntime
import pytest
import torch
from matplotlib.image import imread
from torch import nn

import lstm_fused
from lstm_fused import LSTM

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECIPES = ROOT / "docs" / "recipes.md"
FROM = ("docs/from_nn_lstm.md", "docs/from_keras.md", "docs/from_tensorflow.md", "docs/from_onnx.md")
WHOLE = ("README.md", "docs/streaming.md", "docs/variants.md", "docs/engines.md", *FROM)


def sections(page):
    """The code of each section by its heading, without the blocks before the first."""
    _, *parts = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)
    code = {part.splitlines()[0]: "\n".join(BLOCK.findall(part)) for part in parts}
    return {heading: text for heading, text in code.items() if text}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Run the code of a recipe in an empty folder, after what is shared, and return its names."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    every = sections(RECIPES)
    shared = BLOCK.findall(RECIPES.read_text().split("\n## ")[0])
    tagger = re.search(r"^class Tagger.*?\n\n\n", "\n".join(every.values()), re.MULTILINE | re.DOTALL)

    def run(heading):
        names = {}
        exec("\n".join([*shared, tagger[0], every[heading]]), names)
        return names

    return run


@pytest.mark.parametrize("page", WHOLE)
def test_the_code_of_a_page_runs(page):
    names = {}
    exec("\n".join(BLOCK.findall((ROOT / page).read_text())), names)
    assert isinstance(names["lstm"], LSTM)


def test_every_recipe_has_a_test():
    tested = set(re.findall(r'recipe\(\s*"([^"]*)"', Path(__file__).read_text()))
    assert tested == sections(RECIPES).keys()


def test_load_a_checkpoint(recipe):
    found = recipe("Load a checkpoint of nn.LSTM into a peephole model")
    x = torch.randn(3, 9, 20)
    torch.testing.assert_close(found["model"](x), found["old"](x))
    torch.testing.assert_close(found["encoder"](x)[0], found["old"].encoder(x)[0])
    assert not found["encoder"].weight_peephole_l0.any() and found["model"].encoder.peephole


def test_train_only_the_peepholes(recipe):
    found = recipe("Train only the peepholes")
    groups = found["optimizer"].param_groups
    assert [len(group["params"]) for group in groups] == [18, 4]
    assert {tuple(p.shape) for p in groups[1]["params"]} == {(3, 32)}
    # The first optimizer of the recipe.
    code = sections(RECIPES)["Train only the peepholes"].split("\nmodel = Tagger(LSTM)\nnamed")[0]
    exec(code, found)
    before = {name: p.clone() for name, p in found["model"].named_parameters()}
    found["model"](torch.randn(3, 9, 20)).sum().backward()
    found["optimizer"].step()
    changed = {name for name, p in found["model"].named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "peephole" in name} and len(changed) == 4


def test_learn_the_initial_states(recipe):
    learned = recipe("Learn the initial states")["learned"]
    x = torch.randn(5, 3, 20)
    torch.testing.assert_close(learned(x)[0], learned.lstm(x)[0])
    learned(x, torch.tensor([5, 2, 1]))[0].sum().backward()
    assert learned.h_0.grad.abs().min() > 0 and learned.c_0.grad.abs().min() > 0


def test_take_the_last_outputs_of_both_directions(recipe):
    found = recipe("Take the last outputs of both directions")
    output, lengths = found["output"], found["lengths"]
    assert torch.equal(found["last"][:, 32:], output[0, :, 32:])
    assert torch.equal(found["last"][:, :32], output[lengths - 1, torch.arange(3), :32])
    assert not torch.equal(found["last"], output[-1])


def test_stream_with_two_directions(recipe):
    found = recipe("Stream with two directions")
    whole, pieces = found["lstm"](found["sequence"])[0], torch.cat(found["pieces"])
    torch.testing.assert_close(pieces[..., :32], whole[..., :32])
    torch.testing.assert_close(pieces[-25:, :, 32:], whole[-25:, :, 32:])
    assert not torch.allclose(pieces[:75, :, 32:], whole[:75, :, 32:])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:# The axis name")
def test_write_a_whole_model_as_onnx(recipe):
    model = recipe("Write a whole model as ONNX")["model"]
    session = onnxruntime.InferenceSession("tagger.onnx")
    for T, B in ((50, 3), (7, 2)):
        x, lengths = torch.randn(B, T, 20), torch.arange(1, B + 1, dtype=torch.int32)
        (scores,) = session.run(None, {"input": x.numpy(), "lengths": lengths.numpy()})
        torch.testing.assert_close(torch.from_numpy(scores), model(x, lengths).detach(), rtol=1e-4, atol=1e-5)


def test_draw_the_gates_of_your_own_model(recipe):
    found = recipe("Draw the gates of your own model")
    alone = lstm_fused.inspect(found["model"].encoder, found["x"][2, :23])["l1"]
    for cut, expected in zip(found["one"], alone, strict=True):
        torch.testing.assert_close(cut, expected)
    assert imread("gates.png")[..., :3].std() > 0.1


def test_initialise_by_a_loop(recipe):
    lstm = recipe("Initialise by a loop over the parameters")["lstm"]
    for gate in lstm.weight_hh_l1.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(32), atol=1e-5, rtol=0)
    assert not lstm.weight_peephole_l0.any() and lstm.bias_ih_l1.sum() == 32 and not lstm.bias_hh_l1.any()
    nn.init.xavier_uniform_(lstm.weight_peephole_l0)  # loops that take every weight for a matrix
