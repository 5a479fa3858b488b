"""`restore` is the reverse of `replace` where the peepholes are zero."""

import copy
import pickle

import pytest
import torch
from replaced_models import F64, IGNORED, PARAMETRIZED, X, each_option, make, same
from torch import nn
from torch.nn.utils import parametrizations

import lstm_fused
from lstm_fused import LSTM, LSTMCell, replace, restore

pytestmark = IGNORED


@each_option
def test_restore_is_the_reverse(options):
    model, fresh = make(**options) if not options.get("proj_size") else nn.LSTM(5, 7, **options), None
    fresh = copy.deepcopy(model)
    lstms = [m for m in model.modules() if isinstance(m, (nn.LSTM, nn.LSTMCell))]
    identities = [id(p) for p in model.parameters()]
    added = replace(model).peepholes
    report = restore(model)
    assert added and report.peepholes.keys() >= added.keys() and not report.skipped
    assert [id(p) for p in model.parameters()] == identities
    for module, other in zip(
        lstms, (m for m in fresh.modules() if type(m) in (nn.LSTM, nn.LSTMCell)), strict=True
    ):
        assert type(module) is type(other) and vars(module).keys() == vars(other).keys()
        assert list(module._parameters) == list(other._parameters)
        if isinstance(module, nn.LSTM):
            assert all(map(torch.equal, module._flat_weights, other._flat_weights))
            assert module._flat_weights_names == other._flat_weights_names
    pickle.loads(pickle.dumps(model)).double()
    if "batch_first" not in options and "proj_size" not in options:
        assert torch.equal(model(X), fresh(X))


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_restored_parametrized_weights_stay_so(name):
    torch.manual_seed(0)
    lstm = PARAMETRIZED[name](nn.LSTM(5, 7, dtype=F64))
    expected = lstm(X)[0].detach()
    replace(lstm)
    assert list(restore(lstm).replaced) == [""] and isinstance(lstm, nn.LSTM)
    same(lstm(X)[0].detach(), expected)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.mul_(1.5)
        assert not torch.allclose(lstm(X)[0], expected)


RESTORE_SKIPS = {
    "peepholes": (lambda: LSTM(5, 7), "weight_peephole_l0 is not zero: up to 0."),
    "meta": (lambda: LSTM(5, 7, device="meta"), "weight_peephole_l0 is not zero: unknown"),
    "options": (
        lambda: LSTM(5, 7, peephole=False, zoneout_h=0.1, layer_norm=True),
        "torch has no layer_norm, zoneout_h",
    ),
    "coupled": (lambda: LSTMCell(5, 7, peephole=False, coupled=True), "torch has no coupled"),
    "parametrized": (
        lambda: parametrizations.weight_norm(LSTM(5, 7), "weight_peephole_l0"),
        "weight_peephole_l0 is param",
    ),
    "subclass": (lambda: type("Mine", (LSTM,), {})(5, 7), "Mine is a subclass of lstm_fused's"),
}


@pytest.mark.parametrize("name", RESTORE_SKIPS)
def test_what_restore_skips(name):
    build, reason = RESTORE_SKIPS[name]
    model = nn.Sequential(build())
    kind = type(model[0])
    report = restore(model)
    assert report.skipped["0"].startswith(reason) and not report.replaced and type(model[0]) is kind


def test_restore_leaves_the_classifier_its_lengths():
    model = lstm_fused.SequenceClassifier(5, 7, 1, 3, peephole=False)
    assert restore(model).skipped == {"lstm": "SequenceClassifier calls it with lengths"}
    assert list(restore(nn.Sequential(LSTMCell(5, 7, peephole=False))).replaced) == ["0"]
