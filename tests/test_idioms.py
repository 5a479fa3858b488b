"""Code written for torch.nn.LSTM that goes through its weights and methods also takes ours."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lstm_fused import LSTM, ArgumentError, LSTMCell, lstm

OPTIONS = {
    "plain": {},
    "busy": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projected": {"num_layers": 2, "proj_size": 3},
    "bare": {"bias": False},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@each_option
def test_weights_are_listed_as_in_torch(options):
    theirs, ours, more = (
        nn.LSTM(5, 7, **options),
        LSTM(5, 7, peephole=False, **options),
        LSTM(5, 7, **options),
    )
    ours.load_state_dict(theirs.state_dict())
    assert ours.mode == theirs.mode == "LSTM"
    assert ours._all_weights == theirs._all_weights and ours._flat_weights_names == theirs._flat_weights_names
    for own, given in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert all(map(torch.equal, own, given)) and len(own) == len(given)
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    assert all(a is b for a, b in zip(more._flat_weights, more.parameters(), strict=True))
    for given, own in zip(theirs._all_weights, more._all_weights, strict=True):
        assert own[: len(given)] == given and [n[:15] for n in own[len(given) :]] == ["weight_peephole"]


@each_option
def test_flat_weights_may_be_set(options):
    """The idiom of code that has replaced weights of torch.nn.LSTM; theirs computes with the list."""
    for module in (nn.LSTM(5, 7, **options), LSTM(5, 7, **options)):
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        module.weight_hh_l0 = nn.Parameter(torch.zeros_like(module.weight_hh_l0))
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        assert module._flat_weights[1] is module.weight_hh_l0
    held, others = list(module.parameters()), list(LSTM(5, 7, **options).parameters())
    module._flat_weights = others
    assert all(a is b for a, b in zip(module.parameters(), others, strict=True))
    with pytest.raises(ArgumentError, match="_flat_weights: expected the attribute weight_ih_l0, or a param"):
        module._flat_weights = [others[0] * 2, *held[1:]]
    with pytest.raises(ArgumentError, match=f"expected the attribute {module._flat_weights_names[-1]}, or"):
        module._flat_weights = [*held[:-1], others[-1] * 2]
    with pytest.raises(ArgumentError, match=f"_flat_weights: expected {len(held)} tensors, of weight_ih_"):
        module._flat_weights = held[:-1]
    assert all(a is b for a, b in zip(module.parameters(), others, strict=True))
    del module.weight_hh_l0
    module.weight_hh_l0 = dropped = others[1] * 0.5
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    assert module._flat_weights[1] is dropped
    del module.weight_hh_l0
    module._flat_weights = others
    assert module.weight_hh_l0 is others[1]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@each_option
def test_methods_answer_as_those_of_torch(options):
    theirs, ours = nn.LSTM(5, 7, **options), LSTM(5, 7, **options)
    x, packed = torch.randn(4, 2, 5), pack_sequence([torch.randn(n, 5) for n in (3, 2, 2)])
    for method in ("get_expected_hidden_size", "get_expected_cell_size"):
        for arguments in ((x, None), (packed.data, packed.batch_sizes)):
            assert getattr(ours, method)(*arguments) == getattr(theirs, method)(*arguments)
    hidden = theirs(x)[1]
    ours.check_forward_args(x, hidden, None)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size"):
        ours.check_forward_args(x, (hidden[0][:, :1], hidden[1]), None)
    with pytest.raises(RuntimeError, match=r"input\.size"):
        ours.check_input(x[..., :4], None)
    order = torch.arange(hidden[0].shape[1]).flip(0)
    assert all(map(torch.equal, ours.permute_hidden(hidden, order), theirs.permute_hidden(hidden, order)))
    ours.flatten_parameters()


def xavier_by_name(module):
    for name, parameter in module.named_parameters():
        if "weight" in name:
            nn.init.xavier_uniform_(parameter)
        elif "bias" in name:
            nn.init.zeros_(parameter)


def orthogonal_unless_bias(module):
    for name, parameter in module.named_parameters():
        if "bias" in name:
            nn.init.constant_(parameter, 0.0)
        else:
            nn.init.orthogonal_(parameter)


def by_dimension(module):
    for parameter in module.parameters():
        if len(parameter.shape) >= 2:
            nn.init.orthogonal_(parameter)
        else:
            nn.init.normal_(parameter)


def through_all_weights(module):
    for names in module._all_weights:
        for name in names:
            if "weight" in name:
                nn.init.kaiming_normal_(getattr(module, name))
            else:
                bias = getattr(module, name)
                bias.data[len(bias) // 4 : len(bias) // 2].fill_(1.0)


def separately(module):
    for name, parameter in module.named_parameters():
        if "weight_ih" in name:
            nn.init.xavier_uniform_(parameter)
        elif "weight_hh" in name:
            nn.init.orthogonal_(parameter)
        elif "bias" in name:
            nn.init.zeros_(parameter)


# The loops found in public code, the most frequent first.
LOOPS = (separately, by_dimension, xavier_by_name, orthogonal_unless_bias, through_all_weights)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("coupled", [False, True], ids=["four gates", "coupled"])
def test_initialisation_loops_do_not_trip_on_peepholes(loop, coupled):
    module = LSTM(5, 7, 2, bidirectional=True, coupled=coupled)
    loop(module)
    for name, parameter in module.named_parameters():
        if "weight" in name:
            assert parameter.std() > 0 and parameter.abs().max() < 3, name
    if loop is not through_all_weights:
        loop(LSTMCell(5, 7, coupled=coupled))


class Derived(nn.LSTM):
    """What `LSTM` would be to TorchDynamo if it derived from torch.nn.LSTM."""

    def forward(self, input, hx=None):
        return 2 * input, hx


def test_torch_compile_refuses_whatever_derives_from_torch_and_takes_ours():
    """If this fails for nn.LSTM, the reason why `LSTM` does not derive from it is gone."""
    x = torch.randn(4, 2, 5)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(nn.Sequential(Derived(5, 7)), fullgraph=True, backend="eager")(x)
    ours = nn.Sequential(LSTM(5, 7))
    torch.testing.assert_close(torch.compile(ours, fullgraph=True, backend="eager")(x)[0], ours(x)[0])
    assert not isinstance(ours[0], nn.RNNBase)


@pytest.mark.parametrize("make", [LSTM, LSTMCell])
@pytest.mark.parametrize("coupled", [False, True], ids=["four gates", "coupled"])
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_flat_peepholes_of_old_state_dicts_load(make, coupled, assign):
    old, module = nn.Sequential(make(5, 7, coupled=coupled)), nn.Sequential(make(5, 7, coupled=coupled))
    state = {name: p.flatten() if "peephole" in name else p for name, p in old.state_dict().items()}
    given = dict(state)
    module.load_state_dict(state, assign=assign)
    assert all(map(torch.equal, module.parameters(), old.parameters()))
    assert all(state[name] is value for name, value in given.items()), "the caller's dict is as it was"
    state[next(n for n in state if "peephole" in n)] = torch.zeros(8)
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight_peephole"):
        module.load_state_dict(state, assign=assign)


def test_lstm_takes_peepholes_of_both_shapes():
    module, x = LSTM(5, 7), torch.randn(4, 2, 5)
    weights = module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0
    for peephole in (module.weight_peephole_l0, module.weight_peephole_l0.flatten()):
        assert torch.equal(lstm(x, *weights, peephole=peephole)[0], module(x)[0])
    with pytest.raises(ArgumentError, match=r"peephole: expected shape \(3, 7\)"):
        lstm(x, *weights, peephole=module.weight_peephole_l0.T)
