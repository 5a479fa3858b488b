"""`replace`, `restore` and `replacing` on whole models, with what holds on to modules and parameters."""

import copy
import gc
import pickle
import re
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.ao.nn import quantizable
from torch.ao.nn.quantized import dynamic as quantized
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm
from torch.optim.swa_utils import AveragedModel

import lstm_fused
from lstm_fused import LSTM, ArgumentError, LSTMCell, replace, replacing, restore

F64 = torch.float64
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]
OPTIONS = {
    "plain": {},
    "busy": {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
    "projected": {"num_layers": 2, "proj_size": 3},
    "bare": {"bias": False},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
X = torch.randn(4, 3, 5, dtype=F64, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """An encoder used twice, a cell, and a decoder that shares the encoder's weights."""

    def __init__(self, **options):
        super().__init__()
        self.encoder = nn.LSTM(5, 7, dtype=F64, **options)
        self.stack = nn.Sequential(nn.Linear(7, 5, dtype=F64), nn.ModuleDict({"again": self.encoder}))
        self.decoder = nn.LSTM(5, 7, dtype=F64, **options)
        for name, parameter in self.encoder.named_parameters():
            setattr(self.decoder, name, parameter)
        self.cell = nn.LSTMCell(7, 7, dtype=F64)
        self.aside = [self.encoder]

    def forward(self, x):
        y = self.stack[0](self.encoder(x)[0])
        y, _ = self.decoder(self.aside[0](y)[0][..., :5])
        return self.cell(y[0])[1]


def make(**options):
    torch.manual_seed(0)
    return Model(**options).eval()


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


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


class Louder(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class Renamed(nn.LSTMCell):
    pass


def on_instance():
    lstm = nn.LSTM(5, 7)
    lstm.forward = lambda x: x
    return lstm


def mixed():
    lstm = nn.LSTM(5, 7)
    lstm.bias_hh_l0 = nn.Parameter(lstm.bias_hh_l0.double())
    return lstm


def reshaped():
    lstm = nn.LSTM(5, 7)
    lstm.weight_ih_l0 = nn.Parameter(torch.zeros(28, 4))
    return lstm


def missing():
    lstm = nn.LSTM(5, 7)
    del lstm.weight_hh_l0
    return lstm


def lazy():
    lstm = nn.LSTM(5, 7)
    lstm.weight_hh_l0 = nn.UninitializedParameter()
    return lstm


def integers():
    lstm = nn.LSTM(5, 7).requires_grad_(False)
    for parameter in lstm.parameters():
        parameter.data = parameter.data.to(torch.float8_e4m3fn)
    return lstm


class Nothing(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


class FakeFSDP(Nothing):
    pass


FakeFSDP.__name__ = FullyShardedDataParallel.__name__


class FakeDDP(Nothing):
    pass


FakeDDP.__name__ = DistributedDataParallel.__name__

SKIPPED = {
    "subclass": (lambda: Louder(5, 7), "Louder is a subclass of torch.nn.LSTM with a forward of its own"),
    "cell": (lambda: Renamed(5, 7), "Renamed is a subclass of torch.nn.LSTMCell"),
    "ours": (lambda: LSTM(5, 7), "lstm_fused's already"),
    "quantized": (
        lambda: quantized.LSTM(5, 7),
        "torch.ao.nn.quantized.dynamic.modules.rnn.LSTM is quantized",
    ),
    "quantizable": (lambda: quantizable.LSTM(5, 7), "torch.ao.nn.quantizable.modules.rnn.LSTM is quantized"),
    "script": (lambda: torch.jit.script(nn.LSTM(5, 7)), "compiled by TorchScript; replace before"),
    "instance": (on_instance, "its forward was set on the instance"),
    "dtypes": (mixed, "parameters are float32 on cpu and float64 on cpu"),
    "shape": (reshaped, r"weight_ih_l0 has shape \(28, 4\) rather than \(28, 5\)"),
    "missing": (missing, "weight_hh_l0 is missing"),
    "lazy": (lazy, "weight_hh_l0 is not initialised yet"),
    "float8": (integers, "weight_ih_l0 is float8_e4m3fn"),
    "FSDP": (lambda: FakeFSDP(nn.LSTM(5, 7)), "FullyShardedDataParallel knows its parameters already"),
    "DDP": (lambda: FakeDDP(nn.LSTM(5, 7)), "DistributedDataParallel knows its parameters already"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_skipped_stays_and_is_reported(name):
    build, reason = SKIPPED[name]
    module = build()
    inner = getattr(module, "module", module)
    kind, names, fields = type(inner), [n for n, _ in module.named_parameters()], set(vars(inner))
    model = nn.Sequential(nn.Linear(3, 3), module)
    report = replace(model)
    key = "1.module" if inner is not module else "1"
    assert not report.replaced and not report.peepholes and list(report.skipped) == [key]
    assert type(inner) is kind and set(vars(inner)) == fields
    assert [n for n, _ in module.named_parameters()] == names
    assert re.match(reason, report.skipped[key]), report.skipped
    assert str(report).startswith(f"{key}") and "skipped: " in str(report)


def test_what_ddp_wraps_is_replaced_without_peepholes():
    assert list(replace(FakeDDP(nn.LSTM(5, 7)), peephole=False).replaced) == ["module"]
    assert list(replace(DataParallel(nn.LSTM(5, 7))).replaced) == ["module"]
    assert str(replace(nn.Linear(3, 3))) == "no LSTM found"


PARAMETRIZED = {
    "weight norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "old weight norm": lambda m: weight_norm(m, "weight_hh_l0"),
    "pruned": lambda m: prune.l1_unstructured(m, "weight_hh_l0", amount=0.5),
}


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


def test_frozen_parametrized_weights_get_frozen_peepholes():
    lstm = parametrizations.weight_norm(nn.LSTM(5, 7), "weight_hh_l0").requires_grad_(False)
    assert not next(iter(replace(lstm).peepholes.values())).requires_grad


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


def test_errors():
    for function in (replace, restore):
        with pytest.raises(ArgumentError, match=r"model: expected a torch\.nn\.Module, got OrderedDict"):
            function(make().state_dict())
    for function in (lambda **options: replace(make(), **options), replacing):
        with pytest.raises(ArgumentError, match="peephole: expected True or False, got 'no'"):
            function(peephole="no")
        with pytest.raises(ArgumentError, match="engine: expected one of"):
            function(engine="cudnn")


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
