"""Modules on the device of the tests, in float32: `make mps-check` runs them after the engines' tests."""

from copy import deepcopy

import pytest
import torch
from cases import DEVICE
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lstm_fused
from lstm_fused import LSTM

T, B, I, H = 7, 5, 6, 11
LENGTHS = torch.tensor([7, 0, 3, 5, 1], device="cpu")
close = torch.testing.assert_close


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(DEVICE)


def made(**options):
    torch.manual_seed(0)
    return LSTM(I, H, device="cpu", **options).to(DEVICE)


def trained(module, x, **options):
    """Outputs, states and all gradients, on the CPU."""
    x = x.clone().requires_grad_()
    y, states = module(x, **options)
    loss = y.cos().sum() + sum(state.sum() for state in states)
    return [
        v.detach().cpu().double() for v in (y, *states, *torch.autograd.grad(loss, [x, *module.parameters()]))
    ]


def exact(module, x, **options):
    """The same by the reference in float64 on the CPU."""
    module = deepcopy(module).cpu().double()
    module.engine = "reference"
    return trained(module, x.cpu().double(), **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True},
        {"proj_size": 4, "num_layers": 2, "bias": False},
        {"peephole": False, "batch_first": True},
        {"cell_clip": 0.5, "coupled": True},
        {"layer_norm": True, "bidirectional": True},
    ],
    ids=lambda options: "_".join(options) or "plain",
)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_training(options, lengths):
    module = made(**options)
    x = drawn(*((B, T) if options.get("batch_first") else (T, B)), I)
    close(trained(module, x, lengths=lengths), exact(module, x, lengths=lengths), rtol=1e-4, atol=1e-5)


def test_lengths_on_the_device_and_strided_input():
    module, x = made(), drawn(T, 2 * B, 2 * I)[:, ::2, ::2]
    close(
        trained(module, x, lengths=LENGTHS.to(DEVICE)),
        exact(module, x, lengths=LENGTHS),
        rtol=1e-4,
        atol=1e-5,
    )


def test_packed_sequences_and_one_sequence():
    module, x, lengths = made(), drawn(T, B, I), LENGTHS.clamp(min=2)
    y, states = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    wanted, wanted_states = module(x, lengths=lengths)
    close((pad_packed_sequence(y)[0], *states), (wanted, *wanted_states))
    close(module(x[:, 0])[0], module(x[:, :1])[0][:, 0])


def test_nothing_to_do():
    module = made()
    for shape in ((0, B, I), (T, 0, I)):
        y, (h, c) = module(drawn(*shape))
        assert y.shape == (*shape[:2], H) and h.shape == c.shape == (1, shape[1], H)


@pytest.mark.parametrize(
    "options", [{"recurrent_dropout": 0.3}, {"zoneout_h": 0.2, "zoneout_c": 0.3}], ids="_".join
)
def test_variants_draw_the_same_masks_for_every_engine(options):
    module, x, found = made(**options), drawn(T, B, I), []
    for engine in (None, "reference"):
        module.engine = engine
        torch.manual_seed(3)
        found.append(trained(module, x))
    close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_autocast(dtype):
    module, x = made(), drawn(T, B, I)
    wanted = exact(module, x)[0]
    with torch.autocast(DEVICE, dtype):
        y = module(x)[0]
    assert y.dtype == dtype
    close(y.cpu().double(), wanted, rtol=0.05, atol=0.05)
    close(module.to(dtype)(x.to(dtype))[0].cpu().double(), wanted, rtol=0.05, atol=0.05)


def test_equal_bits():
    module, x = made(num_layers=2), drawn(T, B, I)
    assert all(map(torch.equal, trained(module, x), trained(module, x)))


def test_many_steps():
    """More than a resident kernel runs in one dispatch."""
    module, x = made(), drawn(2100, 1, I)
    close(trained(module, x), exact(module, x), rtol=1e-3, atol=1e-3)


def test_a_graph_of_torch_compile():
    module, x = made(), drawn(T, B, I)
    close(torch.compile(module, backend="eager", fullgraph=True)(x)[0], module(x)[0])


def test_function_transforms():
    module, x = made(), drawn(3, T, B, I)
    close(vmap(lambda x: module(x)[0])(x), torch.stack([module(one)[0] for one in x]))
    weights = dict(module.named_parameters())
    rows = jacrev(lambda w: functional_call(module, w, (x[0],))[0].sum(dim=(0, 2)))(weights)
    for row in range(B):
        loss = module(x[0])[0].sum(dim=(0, 2))[row]
        wanted = torch.autograd.grad(loss, list(weights.values()))
        close([rows[name][row] for name in weights], list(wanted), rtol=1e-4, atol=1e-5)


def test_a_model_learns_and_moves():
    torch.manual_seed(0)
    model = lstm_fused.SequenceClassifier(I, H, 1, 3).to(DEVICE)
    x, labels = drawn(B, T, I), torch.arange(B, device="cpu").to(DEVICE) % 3
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    there = deepcopy(model).cpu()
    close(there(x.cpu()), model(x).cpu(), rtol=1e-4, atol=1e-5)
