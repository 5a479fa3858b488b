"""Both directions of a layer at the same time: when they run so, and how their kernels are checked before."""

from functools import partial

import pytest
import torch
from fake_streams import watched
from guarded import CPU, SMALL, Y, cache_files, outcome, right
from lstm_fused.kernels import check, choose, guard, side_by_side
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lstm_fused import LSTM
from lstm_fused.backends import streams


class Beside:
    """A bidirectional layer and its input, and what has run at the same time since the last question."""

    def __init__(self, watch):
        self.watch, self.slept = watch, []
        self.module, self.x = LSTM(3, 5, bidirectional=True, engine="triton"), torch.randn(2, 3, 3)

    def ran(self):
        """Whether a second stream has been used."""
        used = bool(streams._partners)
        streams._partners.clear()
        return used


@pytest.fixture
def beside(monkeypatch):
    """Two steps are enough here."""
    monkeypatch.setattr(streams, "LEAST_STEPS", 2)
    monkeypatch.setattr(check, "DEVICE", "cpu")
    with watched(monkeypatch, noting=False) as watch:
        found = Beside(watch)
        monkeypatch.setattr(torch.cuda, "_sleep", found.slept.append, raising=False)
        yield found


def in_turn(module, x):
    """What the layer gives, one direction after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "LEAST_STEPS", 100)
        return outcome(module, x)


def test_by_name_both_directions_run_at_once_after_a_check_of_that(beside, checks, launched):
    found = outcome(beside.module, beside.x)
    assert beside.ran() and checks == ["forward resident", "backward resident"]
    # Of a check a run alone and two at once, in both time directions; then the call's own two.
    checked = [name for name in checks for _ in range(6)]
    assert launched == checked + ["forward resident"] * 2 + ["backward resident"] * 2
    assert beside.slept == [check.HELD] * 4
    assert [("streams2" in path.name) for path in cache_files() if path.is_file()] == [True] * 2
    wanted = in_turn(beside.module, beside.x)
    assert all(map(torch.equal, found, wanted)) and not beside.ran()
    assert len(checks) == 4, "one launch at a time has verdicts of its own"
    outcome(beside.module, beside.x)
    assert len(checks) == 4


@pytest.mark.parametrize("gradients", ["off", "not needed"])
def test_without_gradients_the_backward_kernels_do_not_matter(gradients, beside, checks):
    if gradients == "not needed":
        beside.module.requires_grad_(False)
    with torch.set_grad_enabled(gradients != "off"):
        beside.module(beside.x)
    assert beside.ran() and checks == ["forward resident"]


def test_a_gradient_that_one_direction_needs_is_enough(beside, checks):
    beside.module.requires_grad_(False).weight_hh_l0_reverse.requires_grad_()
    beside.module(beside.x)
    assert beside.ran() and checks == ["forward resident", "backward resident"]


def test_who_shares_the_card_already_runs_in_turn(beside, launched):
    wanted = outcome(beside.module, beside.x)
    beside.ran()
    for launches in (1, 2):
        with streams.sharing(launches):
            found = outcome(beside.module, beside.x)
        assert not beside.ran() and all(map(torch.equal, found, wanted))
    outcome(beside.module, beside.x)
    assert beside.ran()


def test_by_default_it_is_off_until_it_has_run_on_a_card(beside, checks, monkeypatch):
    beside.module.engine = None
    monkeypatch.setattr(side_by_side, "SIDE_BY_SIDE_KERNELS", ("resident",))
    for tested, runs in (((), False), (("sm_90",), False), (("the interpreter",), True)):
        side_by_side._decided.clear()
        monkeypatch.setattr(side_by_side, "SIDE_BY_SIDE_TESTED", tested)
        outcome(beside.module, beside.x)
        assert beside.ran() == runs
    monkeypatch.setenv("LSTM_FUSED_GPU", "off")
    outcome(beside.module, beside.x)
    assert not beside.ran()


@pytest.mark.parametrize("setting", ["step", "unchecked"])
def test_settings(setting, beside, checks, launched, monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_GPU", setting)
    outcome(beside.module, beside.x)
    kernel = {"step": "step", "unchecked": "resident"}[setting]
    assert beside.ran() and {name.split()[1] for name in launched} == {kernel}
    assert checks == (["forward step", "backward step"] if setting == "step" else [])


def wrong_beside_another(watch, run, arguments):
    run()
    if watch.current is not watch.main:
        arguments[Y].mul_(1.1)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_what_is_wrong_at_the_same_time_alone_runs_in_turn(direction, beside, launched):
    launched.plant(direction, "resident", partial(wrong_beside_another, beside.watch))
    said = "was not right on the interpreter when it ran twice at the same time: .* differs from run to run"
    with pytest.warns(RuntimeWarning, match=f"{said}.* The directions of a layer run one after the other"):
        found = outcome(beside.module, beside.x)
    beside.ran()
    assert all(map(torch.equal, outcome(beside.module, beside.x), found)) and not beside.ran()
    launched.plant(direction, "resident", right)
    assert all(map(torch.equal, in_turn(beside.module, beside.x), found))


def test_while_no_check_can_run_what_is_not_known_runs_in_turn(beside, checks, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(guard, "capturing", lambda device: True)
        found = outcome(beside.module, beside.x)
        assert not beside.ran() and checks == []
    outcome(beside.module, beside.x)
    assert beside.ran() and len(checks) == 2
    with monkeypatch.context() as patch:
        patch.setattr(guard, "capturing", lambda device: True)
        assert all(map(torch.equal, outcome(beside.module, beside.x), found))
        assert beside.ran() and len(checks) == 2


def vmapped(module, x):
    torch.vmap(lambda x: module(x)[0])(x[None])


def forward_mode(module, x):
    with torch.autograd.forward_ad.dual_level():
        module(torch.autograd.forward_ad.make_dual(x, x))


def under_a_mode(module, x):
    with FlopCounterMode(display=False):
        module(x)


def checkpointed(module, x):
    y = checkpoint(lambda x: module(x)[0], x.requires_grad_(), use_reentrant=False)
    y.sum().backward()


def traced(module, x):
    torch.jit.trace(module, (x,), check_trace=False)


def compiled(module, x):
    torch.compile(module, fullgraph=True, backend="eager")(x)


def few_steps(module, x):
    module(x[:1])


def no_rows(module, x):
    module(x[:, :0])


def with_another_engine(module, x):
    module.engine = "reference"
    module(x)


ELSEWHERE = (
    *(vmapped, forward_mode, under_a_mode, checkpointed, traced, compiled),
    *(few_steps, no_rows, with_another_engine),
)


@pytest.mark.filterwarnings("ignore")  # what PyTorch says of its own code, and of tracing
@pytest.mark.parametrize("call", ELSEWHERE, ids=lambda call: call.__name__)
def test_elsewhere_it_runs_in_turn(call, beside, launched):
    call(beside.module, beside.x)
    assert not beside.ran()


def test_variants_and_projections_run_so_too(beside, checks):
    for options in ({"proj_size": 2}, {"cell_clip": 1.0}, {"layer_norm": True}):
        module = LSTM(3, 5, bidirectional=True, engine="triton", **options)
        found = outcome(module, beside.x)
        assert beside.ran()
        assert all(map(torch.equal, found, in_turn(module, beside.x)))
    assert {name.split()[1] for name in checks} == {"step"}


def test_a_kernel_that_does_not_fit_on_half_of_a_card_runs_in_turn(beside, monkeypatch):
    monkeypatch.setattr(choose, "WAITING", ("resident",))
    monkeypatch.setattr(choose, "tiles_at_once", lambda plan, layer, card: 2 - layer.streams)
    monkeypatch.setenv("LSTM_FUSED_KERNEL", "resident")
    outcome(beside.module, beside.x)
    assert not beside.ran()


def test_each_launch_has_half_of_the_card():
    for card in choose.CARDS:
        for direction in ("forward", "backward"):
            layer = SMALL._replace(direction=direction, H=256, B=512, dtype=torch.bfloat16)
            for kernel in choose.KERNELS:
                for plan in choose.fitting(kernel, layer._replace(streams=2), card)[:1]:
                    programs = plan.grid(1, layer.H)[1] * (plan.at_once or 0)
                    most = card.sms * choose.record(kernel).programs_per_sm(plan, layer, card)
                    assert 2 * programs <= most
    assert choose.card_at(CPU).capability == choose.INTERPRETER
