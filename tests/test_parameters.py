"""Parameters: every change takes effect at the next call, because the modules keep no copies."""

import copy
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.multiprocessing  # registers tensors with ForkingPickler
from cases import DEVICE
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lstm_fused import LSTM, LSTMCell

F64 = torch.float64
X = torch.linspace(-1, 1, 4 * 3 * 5, dtype=F64).view(4, 3, 5)


def make(**options):
    torch.manual_seed(0)
    return LSTM(5, 7, dtype=F64, **options)


def output(module, x=X):
    return module(x)[0]


def gradients(module):
    module.zero_grad()
    output(module).square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def test_changes_in_place_and_by_replacement_take_effect():
    module, other = make(), make()
    before = output(module)
    with torch.no_grad():
        for p, q in zip(module.parameters(), other.parameters(), strict=True):
            p.mul_(2)
            q.data = q.data * 2
    assert torch.equal(output(module), output(other)) and not torch.equal(output(module), before)
    module.weight_hh_l0 = nn.Parameter(torch.zeros(28, 7, dtype=F64))
    assert not torch.equal(output(module), output(other))
    assert sum(p.numel() for p in module.parameters()) == sum(t.numel() for t in module.state_dict().values())


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize(
    "module", [make(num_layers=2, bidirectional=True), LSTMCell(5, 7, dtype=F64)], ids=["LSTM", "LSTMCell"]
)
def test_copies_are_equal_and_independent(module, copier):
    x = X if isinstance(module, LSTM) else X[0]
    other, expected = copier(module), output(module, x)
    assert torch.equal(output(other, x), expected)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(output(module, x), expected) and not output(other, x).any()


def test_state_dict_is_strict():
    module, other = make(num_layers=2, proj_size=3), LSTM(5, 7, 2, proj_size=3, dtype=F64)
    assert other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(output(other), output(module))
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight_peephole_l0"'):
        LSTM(5, 7, dtype=F64).load_state_dict(LSTM(5, 7, dtype=F64, peephole=False).state_dict())


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "weight_peephole_l0"])
def test_weight_norm(name):
    module, plain = make(num_layers=2), make(num_layers=2)
    parametrizations.weight_norm(module, name, dim=0)
    torch.testing.assert_close(output(module), output(plain), rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        module.parametrizations[name].original0.mul_(3)  # the norms
        getattr(plain, name).mul_(3)
    torch.testing.assert_close(output(module), output(plain), rtol=1e-10, atol=1e-12)
    found, expected = gradients(module), gradients(plain)
    assert found[f"parametrizations.{name}.original0"].abs().max() > 0
    for other in expected.keys() & found.keys():
        torch.testing.assert_close(found[other], expected[other], rtol=1e-9, atol=1e-11)
    parametrize.remove_parametrizations(module, name)
    torch.testing.assert_close(output(module), output(plain), rtol=1e-10, atol=1e-12)


def test_weight_drop():
    """DropConnect on the recurrent weights as in AWD-LSTM: one mask per call."""
    module, plain = make(), make()
    parametrize.register_parametrization(module, "weight_hh_l0", nn.Dropout(0.5))
    torch.manual_seed(1)
    dropped = output(module)
    torch.manual_seed(1)
    mask = nn.functional.dropout(torch.ones(28, 7, dtype=F64), 0.5)
    with torch.no_grad():
        plain.weight_hh_l0.mul_(mask)
    assert torch.equal(dropped, output(plain)) and not torch.equal(output(module), dropped)
    torch.manual_seed(1)
    found, expected = gradients(module), gradients(plain)
    torch.testing.assert_close(
        found["parametrizations.weight_hh_l0.original"], expected["weight_hh_l0"] * mask
    )
    assert torch.equal(output(module.eval()), output(make()))


def test_weights_may_be_plain_tensors():
    """Older weight-drop implementations replace parameters by plain tensors."""
    module, expected = make(), output(make())
    raw = module.weight_hh_l0
    del module.weight_hh_l0
    module.weight_hh_l0 = raw * 1
    assert torch.equal(output(module), expected)
    output(module).sum().backward()
    assert raw.grad.abs().max() > 0


def test_shared_parameters():
    module = LSTM(7, 7, 2, dtype=F64)
    for name in ("weight_ih", "weight_hh", "weight_peephole"):
        setattr(module, f"{name}_l1", getattr(module, f"{name}_l0"))
    assert len(list(module.parameters())) == 8 - 4 + 2 + 1
    x = torch.randn(4, 3, 7, dtype=F64)
    output(module, x).sum().backward()
    unshared = LSTM(7, 7, 2, dtype=F64)
    unshared.load_state_dict(module.state_dict())
    output(unshared, x).sum().backward()
    both = unshared.weight_hh_l0.grad + unshared.weight_hh_l1.grad
    torch.testing.assert_close(module.weight_hh_l0.grad, both)
    other = copy.deepcopy(module)
    assert other.weight_hh_l1 is other.weight_hh_l0 is not module.weight_hh_l0


def test_to_another_dtype_and_device():
    module = make(num_layers=2)
    assert output(module.to(torch.float32), X.float()).dtype == torch.float32
    assert output(module.to(torch.bfloat16), X.bfloat16()).dtype == torch.bfloat16
    assert output(module.to("meta"), X.bfloat16().to("meta")).is_meta
    assert output(module.to_empty(device=DEVICE).to(F64)).shape == (4, 3, 7)


def test_shared_memory():
    module, x = make().cpu().share_memory(), X.cpu()
    assert all(p.is_shared() for p in module.parameters())
    before = output(module, x)
    received = pickle.loads(ForkingPickler.dumps(module))  # as another process receives it
    with torch.no_grad():
        received.weight_hh_l0.mul_(2)
    assert torch.equal(output(module, x), output(received, x)) and not torch.equal(output(module, x), before)


def nested(module):
    """Nest the module in a model with other parameters."""
    return nn.ModuleDict({"rnn": nn.Sequential(module), "head": nn.Linear(7, 2)}).double()


PLAIN = [
    (nn.LSTM, LSTM, {"num_layers": 2, "bidirectional": True}),
    (nn.LSTM, LSTM, {"bias": False, "proj_size": 3}),
    (nn.LSTMCell, LSTMCell, {}),
]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("theirs", "ours", "options"), PLAIN, ids=["LSTM", "projected", "LSTMCell"])
def test_a_state_dict_of_torch_zeroes_the_peepholes(theirs, ours, options, assign):
    there, x = theirs(5, 7, dtype=F64, **options), X if ours is LSTM else X[0]
    for where in (lambda module: module, nested):
        here = ours(5, 7, dtype=F64, **options)
        given = where(there).state_dict()
        model = where(here)
        names = [name for name in model.state_dict() if "peephole" in name]
        with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*weight_peephole"):
            model.load_state_dict(given)
        for parameter in here.parameters():
            nn.init.uniform_(parameter)
        found = model.load_state_dict(given, strict=False, assign=assign)
        assert sorted(found.missing_keys) == sorted(names) and not found.unexpected_keys
        assert not any("peephole" in name for name in given), "the given state dict has changed"
        torch.testing.assert_close(here(x)[0], there(x)[0], rtol=1e-12, atol=1e-12)
        assert all(parameter.requires_grad for parameter in here.parameters())


def test_peepholes_of_layers_that_are_not_loaded_stay():
    module, other = make(num_layers=2), LSTM(5, 7, 2, dtype=F64)
    before = copy.deepcopy(module.state_dict())
    every = other.state_dict()
    lacking = {
        "nothing": {},
        "another module's": {"head.weight": torch.zeros(2, 7)},
        "biases": {name: value for name, value in every.items() if "bias" in name},
        "one weight": {"weight_hh_l1": every["weight_hh_l1"]},
        "all": every,
    }
    for name, given in lacking.items():
        module.load_state_dict(given, strict=False)
        for k in (0, 1):
            key = f"weight_peephole_l{k}"
            assert torch.equal(module.state_dict()[key], (every if name == "all" else before)[key]), (
                name,
                key,
            )
    module.load_state_dict(
        {name: value for name, value in before.items() if name != "weight_peephole_l1"}, strict=False
    )
    assert torch.equal(module.weight_peephole_l0, before["weight_peephole_l0"]), "layers are independent"
    assert not module.weight_peephole_l1.any()


def test_loading_into_meta_frozen_and_coupled_peepholes():
    given = nn.LSTM(5, 7, dtype=F64).state_dict()
    module = LSTM(5, 7, dtype=F64, device="meta")
    module.weight_peephole_l0.requires_grad_(False)
    module.load_state_dict(given, strict=False, assign=True)
    assert not module.weight_peephole_l0.requires_grad and not module.weight_peephole_l0.any()
    assert output(module).shape == (4, 3, 7)
    coupled, other = make(coupled=True), LSTM(5, 7, dtype=F64, coupled=True, peephole=False)
    coupled.load_state_dict(other.state_dict(), strict=False)
    assert torch.equal(output(coupled), output(other))
    for wrong in (given, other.state_dict()):
        with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
            (coupled if wrong is given else make()).load_state_dict(wrong, strict=False)


def test_missing_gains_and_biases_stay_as_in_torch():
    module = make(layer_norm=True)
    nn.init.constant_(module.gain_ih_l0, 2.0)
    found = module.load_state_dict(nn.LSTM(5, 7, bias=False, dtype=F64).state_dict(), strict=False)
    assert {"gain_ih_l0", "gain_hh_l0", "bias_ih_l0", "weight_peephole_l0"} <= set(found.missing_keys)
    assert (module.gain_ih_l0 == 2).all() and module.bias_ih_l0.any() and not module.weight_peephole_l0.any()


def test_loading_with_parametrized_and_pruned_parameters():
    given = nn.LSTM(5, 7, dtype=F64).state_dict()
    module = make()
    parametrizations.weight_norm(module, "weight_peephole_l0", dim=0)
    with pytest.raises(
        RuntimeError, match=r"rnn\.0\.weight_peephole_l0: expected in the state dict, because a"
    ):
        nested(module).load_state_dict(
            {f"rnn.0.{name}": value for name, value in given.items()}, strict=False
        )
    module.load_state_dict(module.state_dict())
    pruned = make()
    prune.random_unstructured(pruned, "weight_peephole_l0", amount=0.5)
    pruned.load_state_dict(given, strict=False)
    assert not pruned.weight_peephole_l0_orig.any() and not output(pruned).isnan().any()
    normed = make()
    parametrizations.weight_norm(normed, "weight_hh_l0", dim=0)
    state = {name: value for name, value in normed.state_dict().items() if "peephole" not in name}
    normed.load_state_dict(state, strict=False)
    assert not normed.weight_peephole_l0.any(), "the weights have other names"
