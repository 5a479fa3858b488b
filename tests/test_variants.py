"""The variants of the recurrence as options of the modules, and with PyTorch's transforms."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import DEVICE, EVERY_VARIANT, make_masks, make_tensors
from harness import ENGINES_HERE, call
from torch.func import functional_call, grad, vmap

import lstm_fused
from lstm_fused import LSTM, LSTMCell
from lstm_fused.backends import table
from lstm_fused.contract import Variant
from lstm_fused.layers import masks

ALL = [engine.name for engine in ENGINES_HERE]
F64 = torch.float64
OPTIONS = {
    "forget_bias": {"forget_bias": 1.5},
    "coupled": {"coupled": True},
    "layer_norm": {"layer_norm": True},
    "recurrent_dropout": {"recurrent_dropout": 0.4},
    "zoneout": {"zoneout_h": 0.2, "zoneout_c": 0.5},
    "cell_clip": {"cell_clip": 0.25},
}
EVERYTHING = {
    name: value for option in OPTIONS.values() for name, value in option.items() if name != "coupled"
}
each_engine = pytest.mark.parametrize("engine", ALL)
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def make(**options):
    torch.manual_seed(0)
    return LSTM(5, 7, dtype=F64, **options)


def x(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, 5, dtype=F64, generator=generator, device="cpu").to(DEVICE)


@each_engine
@each_option
@pytest.mark.parametrize(
    "more", [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 3}], ids=["one", "deep"]
)
def test_each_option_takes_effect_and_trains_every_parameter(engine, options, more):
    lstm, plain = make(**options, **more, engine=engine), make(**more, engine=engine)
    lengths = torch.tensor([6, 0, 3])
    y, (h_n, c_n) = lstm(x(6, 3), lengths=lengths)
    assert not torch.equal(y, plain(x(6, 3), lengths=lengths)[0])
    assert not y[3:, 2].any() and not y[:, 1].any() and not h_n[:, 1].any()
    for gradient in torch.autograd.grad((y.sum(), h_n.sin().sum(), c_n.sum()), list(lstm.parameters())):
        assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("kind", [LSTM, LSTMCell])
@pytest.mark.parametrize("coupled", [False, True])
def test_forget_bias_initialises_the_forget_gate(kind, coupled):
    module = kind(5, 7, forget_bias=2, coupled=coupled)
    rows = slice(0, 7) if coupled else slice(7, 14)
    parameters = {name.removesuffix("_l0"): p for name, p in module.named_parameters()}
    assert (parameters["bias_ih"][rows] == 2).all() and not parameters["bias_hh"][rows].any()
    for name, p in parameters.items():
        rest = torch.cat([p[: rows.start], p[rows.stop :]]) if "bias" in name else p
        assert rest.abs().max() <= 7**-0.5 and len(rest.unique()) == rest.numel(), name


@each_engine
@pytest.mark.parametrize(
    "more", [{}, {"proj_size": 3, "peephole": False, "bias": False}], ids=["plain", "bare"]
)
def test_coupled_gates_equal_four_gates_with_i_equal_to_1_minus_f(engine, more):
    lstm = make(coupled=True, num_layers=2, bidirectional=True, engine=engine, **more)
    shapes = {name: tuple(p.shape) for name, p in lstm.named_parameters()}
    assert shapes["weight_ih_l1"][0] == shapes["weight_hh_l0_reverse"][0] == 21
    assert shapes.get("weight_peephole_l0", (2, 7)) == (2, 7) and shapes.get("bias_ih_l0", (21,)) == (21,)
    for gates in lstm_fused.inspect(lstm, x(6, 3)).values():
        torch.testing.assert_close(gates.i, 1 - gates.f, rtol=0, atol=1e-15)
        assert gates.f.std() > 0.001
    if not more:  # equal to a module with the four gates written out
        whole = LSTM(5, 7, 2, bidirectional=True, dtype=F64, engine=engine)
        whole.load_state_dict(
            {
                f"weight_peephole_{suffix}" if name == "peephole" else f"{name}_{suffix}": value
                for layer in range(2)
                for suffix in lstm._suffixes(layer)
                for name, value in lstm._parameters_of(suffix)._asdict().items()
                if value is not None
            }
        )
        assert torch.equal(lstm(x(6, 3))[0], whole(x(6, 3))[0])


@each_engine
def test_layer_norm_equals_torch(engine):
    lstm = make(layer_norm=True, peephole=False, engine=engine)
    with torch.no_grad():
        for p in lstm.parameters():
            p.uniform_(-1, 1)
    y, _ = lstm(x(4, 3))
    h = c = torch.zeros(3, 7, dtype=F64)
    norm = torch.nn.functional.layer_norm
    for t, x_t in enumerate(x(4, 3)):
        a = norm(x_t @ lstm.weight_ih_l0.T, (28,), lstm.gain_ih_l0)
        a = a + norm(h @ lstm.weight_hh_l0.T, (28,), lstm.gain_hh_l0) + lstm.bias_ih_l0 + lstm.bias_hh_l0
        i, f, g, o = a.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(y[t], h, rtol=1e-12, atol=1e-14)
    assert (make(layer_norm=True).gain_hh_l0 == 1).all()


@each_engine
@each_option
def test_eval_mode_draws_nothing(engine, options):
    lstm = make(**options, engine=engine).eval()
    before = torch.get_rng_state()
    first = lstm(x(4, 3))[0]
    assert torch.equal(first, lstm(x(4, 3))[0]) and torch.equal(torch.get_rng_state(), before)
    if "recurrent_dropout" in options:
        assert torch.equal(first, make(engine=engine)(x(4, 3))[0])


@each_engine
@pytest.mark.parametrize("name", ["recurrent_dropout", "zoneout"])
def test_masks_follow_the_seed(engine, name):
    lstm = make(**OPTIONS[name], engine=engine)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(lstm(x(9, 3))[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_recurrent_dropout_has_one_mask_for_all_steps():
    lstm = make(recurrent_dropout=0.5, engine="reference")
    torch.manual_seed(0)
    y, _ = lstm(x(5, 400))
    torch.manual_seed(0)
    mask = torch.nn.functional.dropout(torch.ones(400, 7, dtype=F64), 0.5)
    assert abs(mask.mean() - 1) < 0.05 and set(mask.unique().tolist()) == {0.0, 2.0}
    t = {name.removesuffix("_l0"): p for name, p in lstm.named_parameters()}
    again, _ = lstm_fused.lstm(
        x(5, 400), t["weight_ih"], t["weight_hh"], t["bias_ih"], t["bias_hh"],
        peephole=t["weight_peephole"], h_mask=mask, engine="reference",
    )  # fmt: skip
    assert torch.equal(y, again)


@each_engine
def test_zoneout_keeps_a_share_of_the_states(engine):
    lstm = make(zoneout_h=0.25, zoneout_c=0.5, engine=engine)
    hx = torch.full((1, 4000, 7), 3.0, dtype=F64), torch.full((1, 4000, 7), 3.0, dtype=F64)
    _, states = lstm(x(1, 4000), hx)
    for state, share in zip(states, (0.25, 0.5), strict=True):
        assert abs((state == 3).double().mean() - share) < 0.02
    row = masks.zoneout(x(5, 3), 7, 0.5, training=False)
    assert row.shape == (5, 3, 7) and row.untyped_storage().nbytes() == 7 * 8
    _, eval_states = lstm.eval()(x(1, 4000), hx)
    # The mean over masks equals the result of the mean mask only after a single step.
    for state, mean in zip(states, eval_states, strict=True):
        torch.testing.assert_close(state.mean(), mean.mean(), rtol=0.02, atol=0)


@each_engine
def test_cell_clip_bounds_every_c(engine):
    lstm = make(cell_clip=0.25, forget_bias=3.0, engine=engine)
    c = lstm_fused.inspect(lstm, 10 * x(9, 3))["l0"].c
    assert c.abs().max() == 0.25 and 0.1 < (c.abs() == 0.25).double().mean() < 0.9


@each_engine
@each_option
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
def test_steps_of_a_cell_equal_the_sequence(engine, options, dtype):
    if "recurrent_dropout" in options:
        pytest.skip("a cell has no recurrent dropout")
    layer = make(**options, engine=engine).to(dtype).eval()
    cell = LSTMCell(5, 7, dtype=dtype, engine=engine, **options).eval()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    with torch.no_grad():
        whole, (h_n, c_n) = layer(x(9, 3).to(dtype))
        hx = None
        for t, x_t in enumerate(x(9, 3).to(dtype)):
            hx = cell(x_t.clone(), hx)
            if dtype == F64 and "layer_norm" not in options:
                assert torch.equal(hx[0], whole[t])
            torch.testing.assert_close(hx[0], whole[t])
    torch.testing.assert_close(hx, (h_n[0], c_n[0]))


def test_a_cell_applies_zoneout_in_training():
    cell = LSTMCell(5, 7, dtype=F64, zoneout_c=0.5)
    hx = torch.full((3000, 7), 3.0, dtype=F64), torch.full((3000, 7), 3.0, dtype=F64)
    assert abs((cell(x(3000), hx)[1] == 3).double().mean() - 0.5) < 0.02


@each_engine
def test_per_sample_gradients_of_every_option(engine):
    lstm = make(**EVERYTHING, bidirectional=True, proj_size=3, engine=engine)
    parameters = {name: p.detach() for name, p in lstm.named_parameters()}

    def loss(parameters, x):
        y, (h_n, c_n) = functional_call(lstm, parameters, (x,))
        return y.sin().sum() + h_n.square().sum() + c_n.cos().sum()

    lstm.eval()
    samples = x(3, 4)
    found = vmap(grad(loss), (None, 0))(parameters, samples)
    for name, of_all in found.items():
        one = torch.stack([grad(loss)(parameters, sample)[name] for sample in samples])
        torch.testing.assert_close(of_all, one, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    lstm.train()
    for randomness in ("same", "different"):
        per_sample = vmap(grad(loss), (None, 0), randomness=randomness)(
            parameters, samples[:1].expand(3, 4, 5)
        )
        same = torch.equal(per_sample["weight_hh_l0"][0], per_sample["weight_hh_l0"][1])
        assert same == (randomness == "same")


@each_engine
def test_vmap_over_masks(engine):
    case = replace(EVERY_VARIANT, T=4, B=3, I=2, H=5, P=3, lengths=(4, 0, 2))
    t = make_tensors(case, F64)
    drawn = [make_masks(case, F64, seed) for seed in range(3)]
    stacked = {name: torch.stack([m[name] for m in drawn]) for name in drawn[0]}

    def outputs(masks, weight_hr):
        return lstm_fused.lstm(
            t["x"], t["weight_ih"], t["weight_hh"], t["bias_ih"], peephole=t["peephole"], weight_hr=weight_hr,
            gain_ih=t["gain_ih"], gain_hh=t["gain_hh"], lengths=torch.tensor(case.lengths), **masks,
            cell_clip=case.cell_clip, engine=engine,
        )[0].sin().sum()  # fmt: skip

    found = vmap(grad(outputs, argnums=1), (0, None))(stacked, t["weight_hr"])
    one = torch.stack([grad(outputs, argnums=1)(m, t["weight_hr"]) for m in drawn])
    torch.testing.assert_close(found, one, rtol=1e-9, atol=1e-11)


@each_engine
def test_autocast(engine):
    lstm = make(**EVERYTHING, engine=engine).float()
    given = x(6, 3).float()
    torch.manual_seed(0)
    exact = lstm(given)[0]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = lstm(given)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.05)
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in lstm.parameters())


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",  # raised by Dynamo
    "ignore:.*deprecated:DeprecationWarning",
)
@each_engine
def test_compiles_and_exports(engine):
    lstm, given = make(**EVERYTHING, num_layers=2, proj_size=3, engine=engine), x(6, 3)
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    found = []
    for module in (lstm, compiled):
        torch.manual_seed(0)
        y, states = module(given, lengths=torch.tensor([6, 0, 3]))
        found.append((y, *states, *torch.autograd.grad(y.sum(), list(lstm.parameters()))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-14)
    dynamic = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}
    program = torch.export.export(lstm.eval(), (given,), dynamic_shapes=(dynamic,)).module()
    torch.testing.assert_close(program(x(9, 2))[0], lstm(x(9, 2))[0])


def test_the_documented_options_exist():
    text = (Path(__file__).parents[1] / "docs" / "variants.md").read_text()
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert names["lstm"](torch.zeros(4, 2, 28))[0].shape == (4, 2, 128)
    documented = set(re.findall(r"`(\w+)`", text.partition("|---|")[2].partition("\n\n")[0]))
    assert documented >= {*EVERYTHING, "coupled"}


def test_padding_may_hold_nan_under_layer_norm():
    lstm, given = make(layer_norm=True), x(4, 2)
    given[2:, 1] = torch.nan
    y, _ = lstm(given, lengths=torch.tensor([4, 2]))
    gradients = torch.autograd.grad(y.sum(), list(lstm.parameters()))
    assert y.isfinite().all() and all(g.isfinite().all() for g in gradients)


def test_inspect_supports_the_variants():
    case = replace(EVERY_VARIANT, T=4, B=3, I=5, H=7)
    lstm = make(**EVERYTHING).eval()
    gates = lstm_fused.inspect(lstm, x(case.T, case.B))["l0"]
    assert gates.c.shape == (4, 3, 7) and torch.equal(gates.c[-1], lstm(x(case.T, case.B))[1][1][0])


def test_an_engine_without_a_variant_refuses_it(monkeypatch):
    plain = table.Engine("plain", None, (F64,), lambda: None, variants=("cell_clip",))
    monkeypatch.setattr(table, "ENGINES", (plain, *table.ENGINES))
    cpu, ones = torch.device("cpu"), torch.ones(1)
    assert table.select(None, cpu, F64, Variant(cell_clip=3.0)) == "plain"
    assert table.select(None, cpu, F64, Variant(h_mask=ones)) != "plain"
    with pytest.raises(RuntimeError, match="plain: has no h_mask, zoneout_c"):
        table.select("plain", cpu, F64, Variant(h_mask=ones, zoneout_c=ones, cell_clip=3.0))


@each_engine
def test_the_function_accepts_all_variants(engine):
    case = replace(EVERY_VARIANT, T=4, B=3, I=2, H=5)
    y, _, c_n = call(engine, case, make_tensors(case, F64))
    assert y.isfinite().all() and c_n.isfinite().all()


@each_engine
def test_masks_that_require_grad_get_none(engine):
    case = replace(EVERY_VARIANT, T=3, H=5, I=2)
    t, masks_of = make_tensors(case, F64), make_masks(case, F64)
    given = {name: mask.requires_grad_() for name, mask in masks_of.items()}
    given |= {"gain_ih": t["gain_ih"], "gain_hh": t["gain_hh"], "engine": engine}
    x, weight_ih, weight_hh = t["x"], t["weight_ih"], t["weight_hh"].requires_grad_()
    y, _ = lstm_fused.lstm(x, weight_ih, weight_hh, **given)
    wanted = [weight_hh, *masks_of.values()]
    first, *none = torch.autograd.grad(y.sum(), wanted, allow_unused=True, create_graph=True)
    assert first.any() and none == [None] * 3
    second, *none = torch.autograd.grad(first.sum(), wanted, allow_unused=True)
    assert second.any() and none == [None] * 3
    assert not lstm_fused.lstm(x, weight_ih, weight_hh.detach(), **given)[0].requires_grad
