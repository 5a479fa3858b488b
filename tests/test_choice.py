"""`engine_for` says which engine runs and why; a slow one is mentioned once."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import lstm_fused
from lstm_fused import LSTM, ArgumentError, LSTMCell, SlowEngineWarning, lstm
from lstm_fused.backends import choice, cpp, table, triton

needs_cpp = pytest.mark.skipif(
    cpp.unavailable() is not None or triton.INTERPRETED, reason="the C++ engine is not loaded"
)
X = torch.zeros(4, 3, 5)
NOT_FLOAT16 = "cpp takes bfloat16, float32, float64, not float16"


@needs_cpp
@pytest.mark.parametrize("make", [LSTM, LSTMCell])
def test_the_choice_has_a_name_and_a_reason(make):
    x = X if make is LSTM else X[0]
    found = make(5, 7).engine_for(x)
    assert found == lstm_fused.Choice("cpp", cpp.isa(), {}, False) and str(found) == f"cpp ({cpp.isa()})"
    found = make(5, 7, dtype=torch.float16).engine_for(x.half())
    assert found.engine == "reference" and str(found) == f"reference, because {NOT_FLOAT16}"
    assert str(make(5, 7, engine="reference").engine_for(x)) == "reference, as engine='reference' says"
    with torch.autocast("cpu", torch.float16):
        assert make(5, 7).engine_for(x).engine == "reference"
        assert make(5, 7, dtype=torch.float64).engine_for(x.double()).engine == "cpp"
    with pytest.raises(RuntimeError, match="engine 'cpp' cannot serve float16 on cpu"):
        make(5, 7, engine="cpp", dtype=torch.float16).engine_for(x.half())
    with pytest.raises(ArgumentError, match="input: expected a tensor or a PackedSequence, got list"):
        make(5, 7).engine_for([x])


@pytest.mark.parametrize("make", [LSTM, LSTMCell])
@pytest.mark.parametrize(
    "change",
    [
        *(torch.Tensor.double, torch.Tensor.long, torch.Tensor.to_sparse, lambda x: x.to("meta")),
        lambda x: x[0].to_sparse_csr() if x.dim() == 3 else x.to_sparse_csr(),
        lambda x: torch.nested.nested_tensor([x, x]),
    ],
    ids=["float64", "int64", "sparse", "meta", "csr", "nested"],
)
@pytest.mark.filterwarnings("ignore:.*prototype:UserWarning", "ignore:.*beta state:UserWarning")
def test_what_forward_refuses_has_no_engine(change, make):
    module, x = make(5, 7), change(X if make is LSTM else X[0])
    said = set()
    for refusing in (module, module.engine_for):
        with pytest.raises(ArgumentError) as error:
            refusing(x)
        said.add(str(error.value))
    assert len(said) == 1


def test_the_choice_computes_no_parametrized_weight():
    module = nn.utils.parametrizations.spectral_norm(LSTM(5, 7), "weight_hh_l0")
    before = copy.deepcopy(module.state_dict())  # has the vectors of the power iteration
    module.engine_for(X)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@needs_cpp
def test_the_choice_is_the_one_that_runs(monkeypatch):
    monkeypatch.setattr(choice, "notice", lambda *_: None)
    ran = []
    monkeypatch.setattr(
        "lstm_fused.functional.select", lambda *given: ran.append(table.select(*given)) or ran[-1]
    )
    some = {
        "layer_norm": True,
        "recurrent_dropout": 0.5,
        "zoneout_h": 0.5,
        "zoneout_c": 0.5,
        "cell_clip": 1.0,
    }
    for options in ({}, *({name: value} for name, value in some.items())):
        module = LSTM(5, 7, **options)
        for training in (True, False):
            found = module.train(training).engine_for(X).engine
            module(X)
            assert found == ran.pop()
    assert LSTM(5, 7).engine_for(pack_sequence([X[0], X[1]])).engine == "cpp"


def test_options_that_an_engine_lacks_decide(monkeypatch):
    plain = table.Engine("plain", ("cpu",), table.FLOATS, lambda: None, ())
    monkeypatch.setattr(table, "ENGINES", (plain, table.REFERENCE))
    assert LSTM(5, 7).engine_for(X).engine == "plain"
    for option, field in {
        "recurrent_dropout": "h_mask",
        "zoneout_h": "zoneout_h",
        "cell_clip": "cell_clip",
    }.items():
        module = LSTM(5, 7, **{option: 0.5})
        assert str(module.engine_for(X)) == f"reference, because plain has no {field}"
    assert LSTM(5, 7, recurrent_dropout=0.5).eval().engine_for(X).engine == "plain"


def test_the_triton_engine_may_be_turned_off(monkeypatch):
    monkeypatch.setattr(table, "ENGINES", (table.Engine("triton", ("cpu",), table.FLOATS, lambda: None, ()),))
    monkeypatch.delenv("LSTM_FUSED_GPU", raising=False)
    assert str(LSTM(5, 7).engine_for(X)) == f"triton ({choice.CHECKED})"
    monkeypatch.setenv("LSTM_FUSED_GPU", "off")
    assert str(LSTM(5, 7).engine_for(X)) == "reference, because triton is turned off by LSTM_FUSED_GPU"
    assert LSTM(5, 7, engine="triton").engine_for(X).engine == "triton"


def test_devices_without_an_engine():
    meta = LSTM(5, 7, device="meta").engine_for(X.to("meta"))
    assert str(meta) == "reference, because no other engine runs on meta"


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(choice, "_noticed", set())


@needs_cpp
def test_float16_on_a_cpu_is_mentioned_once(fresh):
    module = LSTM(5, 7, dtype=torch.float16)
    with pytest.warns(
        SlowEngineWarning, match=f"runs float16 on cpu in plain PyTorch, .*, because {NOT_FLOAT16}. fl"
    ):
        module(X.half())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(X.half())
        choice._noticed.clear()
        LSTM(5, 7, dtype=torch.float16, engine="reference")(X.half())
        LSTM(5, 7)(X)
        LSTM(5, 7, device="meta")(X.to("meta"))
        torch.compile(module, backend="eager", fullgraph=True)(X.half())
    assert not choice._noticed
    with torch.autocast("cpu", torch.float16), pytest.warns(SlowEngineWarning, match="float16 on cpu"):
        lstm(X, torch.zeros(28, 5), torch.zeros(28, 7))


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_the_plain_loop_on_an_accelerator_is_mentioned_once(fresh, monkeypatch, device):
    absent = table.Engine("absent", ("cuda",), table.FLOATS, lambda: "is not installed", ())
    monkeypatch.setattr(table, "ENGINES", (absent, table.REFERENCE))
    why = "absent is not installed" if device == "cuda" else f"no other engine runs on {device}"
    with pytest.warns(
        SlowEngineWarning, match=f"float32 on {device} in plain PyTorch, step by step, because {why}. "
    ):
        choice.notice(torch.device(device), torch.float32, lstm_fused.contract.PLAIN)
    choice.notice(torch.device(device), torch.float32, lstm_fused.contract.PLAIN)


def test_nothing_is_said_where_the_engine_is_missing(fresh, monkeypatch):
    monkeypatch.setattr(cpp, "_REASON", "not built")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LSTM(5, 7, dtype=torch.float16)(X.half())
