"""Parameters are plain: whatever is done to them counts at the next call, for there is no copy of them."""

import copy
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.multiprocessing  # teaches ForkingPickler to share tensors
from cases import DEVICE
from torch import nn
from torch.nn.utils import parametrizations, parametrize

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


def test_changes_in_place_and_by_replacement_count_at_once():
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
    """DropConnect on the recurrent weights, as AWD-LSTM has it: one mask for each call."""
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
    """As older weight-drops leave them."""
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
    apart = LSTM(7, 7, 2, dtype=F64)
    apart.load_state_dict(module.state_dict())
    output(apart, x).sum().backward()
    both = apart.weight_hh_l0.grad + apart.weight_hh_l1.grad
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
    received = pickle.loads(ForkingPickler.dumps(module))  # as another process gets it
    with torch.no_grad():
        received.weight_hh_l0.mul_(2)
    assert torch.equal(output(module, x), output(received, x)) and not torch.equal(output(module, x), before)
