"""`replace` on whole models, with what holds on to modules and parameters."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from replaced_models import F64, IGNORED, PARAMETRIZED, X, each_option, make, same
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel

from lstm_fused import LSTM, ArgumentError, LSTMCell, replace, replacing, restore

pytestmark = IGNORED


def test_every_lstm_of_a_model_is_replaced_and_nothing_else_changes():
    model = make()
    expected, parameters = model(X), dict(model.named_parameters())
    report = replace(model)
    assert type(model.encoder) is LSTM and type(model.cell) is LSTMCell
    assert model.encoder is model.stack[1]["again"] is model.aside[0]
    same(model(X), expected)
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert report.model is model and not report.skipped
    assert list(report.replaced) == ["encoder", "stack.1.again", "decoder", "cell"]
    assert report.replaced["stack.1.again"] is model.encoder
    assert list(report.peepholes) == ["encoder.weight_peephole_l0", "cell.weight_peephole"]
    for name, peephole in report.peepholes.items():
        assert model.get_parameter(name) is peephole and peephole.requires_grad and not peephole.any()
    assert model.encoder.weight_peephole_l0 is model.decoder.weight_peephole_l0, "tied as weight_hh is"
    assert str(report).splitlines()[1] == "stack.1.again   LSTM(5, 7, peephole=True)"


@each_option
@pytest.mark.parametrize("peephole", [False, True], ids=["without", "with peepholes"])
def test_a_root_becomes_what_from_torch_makes(options, peephole):
    torch.manual_seed(0)
    theirs = nn.LSTM(5, 7, dtype=F64, **options).eval()
    theirs.bias_hh_l0 = theirs._parameters.get("bias_hh_l0")
    expected, made = theirs(X), LSTM.from_torch(theirs, peephole=peephole)
    before = torch.get_rng_state()
    report = replace(theirs, peephole=peephole)
    assert torch.equal(torch.get_rng_state(), before)
    assert report.model is theirs is report.replaced[""]
    assert vars(theirs).keys() - {"bias_hh_l0"} == vars(made).keys() and repr(theirs) == repr(made)
    assert list(theirs.state_dict()) == list(made.state_dict()) and not theirs.training
    assert len(report.peepholes) == peephole * len(theirs.all_weights)
    for found, wanted in zip((theirs(X)[0], *theirs(X)[1]), (expected[0], *expected[1]), strict=True):
        same(found, wanted)
    assert "peephole" in str(report) or not peephole


def test_optimizers_and_averages_go_on():
    def train(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()

    models = make(), make()
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in models]
    averages = [AveragedModel(m) for m in models]
    for step in range(2):
        for model, optimizer, average in zip(models, optimizers, averages, strict=True):
            train(model, optimizer, 2)
            average.update_parameters(model)
        if step == 0:  # without peepholes nothing else is needed
            assert not replace(models[1], peephole=False).peepholes
            assert not replace(averages[1], peephole=False).skipped
    for (name, p), (_, q) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10, msg=name)
    for p, q in zip(averages[0].parameters(), averages[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)
    state = optimizers[1].state_dict()
    report = replace(restore(models[1]).model)
    optimizers[1].add_param_group({"params": report.peepholes.values()})
    train(models[1], optimizers[1], 1)
    assert report.peepholes["encoder.weight_peephole_l0"].any()
    optimizers[0].load_state_dict(state)


def test_averages_go_on_with_peepholes_if_they_are_replaced_too():
    model = make()
    average = AveragedModel(model)
    replace(model), replace(average)
    model.encoder.weight_peephole_l0.data.fill_(1)
    average.update_parameters(model)
    assert (average.module.encoder.weight_peephole_l0 == 1).all()


def test_hooks_stay_and_their_handles_work():
    model, calls = make(), []
    handles = [
        model.encoder.register_forward_hook(lambda m, given, out: calls.append("forward")),
        model.encoder.register_forward_pre_hook(lambda m, given: calls.append("before")),
        model.encoder.register_full_backward_hook(lambda m, given, out: calls.append("backward")),
        model.encoder.register_state_dict_post_hook(lambda *given: calls.append("state")),
        model.encoder.weight_hh_l0.register_hook(lambda grad: calls.append("gradient")),
    ]
    replace(model)
    x = X.clone().requires_grad_()
    model(x).sum().backward()
    model.state_dict()
    assert calls.count("forward") == calls.count("before") == calls.count("backward") == 2
    assert "state" in calls and "gradient" in calls
    for handle in handles:
        handle.remove()
    calls.clear()
    model(X).sum().backward()
    model.state_dict()
    assert not calls


def test_frozen_layers_stay_frozen_and_the_mode_is_kept():
    lstm = nn.LSTM(5, 7, 2, dtype=torch.bfloat16).train()
    for name, parameter in lstm.named_parameters():
        parameter.requires_grad_(not name.endswith("_l0"))
    replace(lstm)
    assert {n: p.requires_grad for n, p in lstm.named_parameters() if "peephole" in n} == {
        "weight_peephole_l0": False,
        "weight_peephole_l1": True,
    }
    assert lstm.training and lstm.weight_peephole_l0.dtype == torch.bfloat16


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrized_weights_stay_so(name):
    torch.manual_seed(0)
    lstm = PARAMETRIZED[name](nn.LSTM(5, 7, dtype=F64))
    parameters, expected = dict(lstm.named_parameters()), lstm(X)[0].detach()
    report = replace(lstm)
    assert not report.skipped and isinstance(lstm, LSTM) and lstm.weight_peephole_l0.requires_grad
    same(lstm(X)[0].detach(), expected)
    assert all(lstm.get_parameter(n) is p for n, p in parameters.items())
    lstm(X)[0].square().sum().backward()
    assert all(p.grad is not None for p in lstm.parameters())
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        assert not torch.allclose(lstm(X)[0], expected)
    if parametrize.is_parametrized(lstm):
        other = copy.deepcopy(lstm)
        same(other(X)[0], lstm(X)[0])
        parametrize.remove_parametrizations(lstm, "weight_hh_l0")
        assert type(lstm) is LSTM


def test_tied_layers_that_are_replaced_one_after_the_other_share_peepholes():
    model = nn.Sequential(nn.LSTM(5, 7), nn.LSTM(5, 7))
    model[0].weight_hh_l0 = model[1].weight_hh_l0
    peephole = replace(model[1]).peepholes["weight_peephole_l0"]
    report = replace(model)
    assert model[0].weight_peephole_l0 is model[1].weight_peephole_l0 is peephole
    assert list(report.replaced) == ["0"] and report.peepholes["0.weight_peephole_l0"] is peephole


def test_layers_with_computed_weights_have_peepholes_of_their_own():
    layers = [parametrizations.weight_norm(nn.LSTM(3, n), "weight_hh_l0") for n in range(2, 42)]
    replace(nn.ModuleList(layers))
    assert len({id(layer.weight_peephole_l0) for layer in layers}) == 40
    assert all(layer.weight_peephole_l0.shape == (3, layer.hidden_size) for layer in layers)


def test_peepholes_are_trained_where_weight_hh_is_no_parameter():
    layer = nn.LSTM(5, 7)
    raw = nn.Parameter(layer.weight_hh_l0.data)
    del layer._parameters["weight_hh_l0"]
    layer.weight_hh_l0 = raw.clone()  # as weight drop does
    assert replace(layer).peepholes["weight_peephole_l0"].requires_grad


def test_frozen_parametrized_weights_get_frozen_peepholes():
    lstm = parametrizations.weight_norm(nn.LSTM(5, 7), "weight_hh_l0").requires_grad_(False)
    assert not next(iter(replace(lstm).peepholes.values())).requires_grad


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies(copier):
    model = make()
    replace(model)
    other = copier(model)
    assert torch.equal(other(X), model(X)) and type(other.encoder) is LSTM
    other.encoder.weight_hh_l0.data.zero_()
    assert other.stack[1]["again"] is other.encoder and model.encoder.weight_hh_l0.any()


def test_state_dicts():
    old, model = make(), make()
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.mul_(1.1)
    replace(model)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "encoder.weight_peephole_l0"'):
        model.load_state_dict(old.state_dict())
    model.encoder.weight_peephole_l0.data.fill_(1)
    model.load_state_dict(old.state_dict(), strict=False)
    same(model(X), old(X))
    other = make()
    replace(other, peephole=False)
    other.load_state_dict(old.state_dict(), strict=True)
    same(other(X), old(X))
    old.load_state_dict(other.state_dict(), strict=True)
    replace(old)
    old.load_state_dict(model.state_dict(), strict=True)


def test_meta_device():
    with torch.device("meta"):
        lstm = nn.LSTM(5, 7)
    report = replace(nn.Sequential(lstm))
    assert all(p.is_meta for p in lstm.parameters()) and len(report.peepholes) == 1
    lstm.to_empty(device="cpu").reset_parameters()
    assert lstm(X.float())[0].isfinite().all() and lstm.weight_peephole_l0.any()


def test_inference_mode_and_default_devices_do_not_reach_the_parameters():
    model = make()
    with torch.inference_mode(), torch.device("meta"):
        report = replace(model)
    assert not any(p.is_inference() or p.is_meta for p in report.peepholes.values())
    model(X).sum().backward()


@pytest.mark.parametrize("when", ["before", "after"])
def test_compile(when):
    """Also a program that was compiled before: its guards notice the change."""
    torch._dynamo.reset()
    model = make().requires_grad_(False)
    expected, compiled = model(X), torch.compile(model, backend="eager")
    if when == "before":
        same(compiled(X), expected)
    replace(model if when == "before" else compiled)
    same(compiled(X), expected)
    with torch.no_grad():
        model.encoder.weight_peephole_l0.fill_(1)
    same(compiled(X), model(X))
    assert not torch.allclose(model(X), expected)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(X), model(X))


def test_graph_modules():
    model = nn.Sequential(nn.Linear(5, 5, dtype=F64), nn.LSTM(5, 7, dtype=F64))
    graph = torch.fx.symbolic_trace(model)
    expected = graph(X)[0]
    assert list(replace(graph).replaced) == ["1"]
    same(graph(X)[0], expected)
    with torch.no_grad():
        graph.get_submodule("1").weight_peephole_l0.fill_(1)
    assert not torch.allclose(graph(X)[0], expected) and torch.equal(graph(X)[0], copy.deepcopy(graph)(X)[0])


def test_errors():
    for function in (replace, restore):
        with pytest.raises(ArgumentError, match=r"model: expected a torch\.nn\.Module, got OrderedDict"):
            function(make().state_dict())
    for function in (lambda **options: replace(make(), **options), replacing):
        with pytest.raises(ArgumentError, match="peephole: expected True or False, got 'no'"):
            function(peephole="no")
        with pytest.raises(ArgumentError, match="engine: expected one of"):
            function(engine="cudnn")


def test_cycles_end_and_nothing_is_kept_alive():
    model = nn.Sequential(nn.LSTM(5, 7))
    model[0].__dict__["parent"] = model
    inner = nn.Module()
    inner.back, model.inner = model, inner
    assert list(replace(model).replaced) == ["0"]
    del model.inner.back
    seen = weakref.ref(model)
    del model, inner
    gc.collect()
    assert seen() is None
