"""Inside `replacing`, torch.nn.LSTM(...) makes ours."""

import copy
import pickle
import threading

import pytest
import torch
from replaced_models import IGNORED, Louder
from torch import nn

from lstm_fused import LSTM, ArgumentError, LSTMCell, replacing, restore

pytestmark = IGNORED


def test_replacing_builds_ours_with_the_weights_of_torch():
    torch.manual_seed(0)
    theirs = nn.ModuleList([nn.LSTM(5, 7, 2, bidirectional=True), nn.LSTMCell(5, 7, bias=False)])
    lstm_by_another_name = nn.LSTM
    torch.manual_seed(0)
    with replacing():
        ours = nn.ModuleList(
            [lstm_by_another_name(5, 7, 2, bidirectional=True), nn.LSTMCell(5, 7, bias=False)]
        )
        assert isinstance(theirs[0], nn.LSTM) and not isinstance(ours[0], nn.LSTM)
        assert type(Louder(5, 7)) is Louder, "subclasses stay torch's"
        assert (
            type(copy.deepcopy(theirs[0])) is nn.LSTM
            and type(pickle.loads(pickle.dumps(theirs))[0]) is nn.LSTM
        )
        assert type(ours[0].to_torch()) is nn.LSTM and type(ours[1].to_torch()) is nn.LSTMCell
        assert type(restore(copy.deepcopy(ours)).model[0]) is nn.LSTM
        with pytest.raises(ArgumentError, match="hidden_size: expected"):
            nn.LSTM(5, 0)
    assert [type(m) for m in ours] == [LSTM, LSTMCell] and not ours[0].peephole
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert type(nn.LSTM(5, 7)) is nn.LSTM and type(Louder(5, 7)) is Louder


def test_replacing_nests_ends_with_an_error_and_does_not_reach_other_threads():
    def elsewhere():
        found.append(type(nn.LSTM(5, 7)))

    found = []
    with replacing(peephole=True, engine="reference"):
        assert nn.LSTM(5, 7).peephole and nn.LSTMCell(5, 7).engine == "reference"
        with pytest.raises(ArgumentError), replacing():
            nn.LSTM(5, nn.LSTM(5, 7).num_layers - 1)
        assert nn.LSTM(5, 7).peephole
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert found == [nn.LSTM]


def test_mixins_make_instances_as_before():
    class Mixin:
        def __new__(cls, *args, **options):
            made = super().__new__(cls)
            made.__dict__["sizes"] = args
            return made

    class Layer(nn.LSTM, Mixin):
        pass

    with replacing():
        assert Layer(5, 7).__dict__["sizes"] == (5, 7)
    assert Layer(5, 7).__dict__["sizes"] == (5, 7)
