"""The C++ engine with invalid arguments: empty, huge and malformed tensors, also passed to the operators.

Each test runs in a subprocess, because it may crash.
"""

import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import lstm_fused
from lstm_fused.autograd.operators import backward_op, forward_op, gradients_op
from lstm_fused.backends import cpp

if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)


def in_a_process(*arguments):
    """Call a function of this file in a subprocess."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", __file__, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=300
    )
    last = done.stdout[-500:] + done.stderr[-2000:]
    assert done.returncode == 0, f"exit status {done.returncode} after:\n{last}"


def drawn(rng, generator):
    """Draw arguments of `lstm` with at least one size zero, and the sizes."""
    while True:
        T, B, I, H, P = (rng.choice((0, 0, 1, 2, 5, 19)) for _ in range(5))
        projected = rng.random() < 0.5 and P < H
        P = P if projected else H
        if 0 in (T, B, I, H, P):
            break
    dtype = rng.choice((torch.float64, torch.float32, torch.bfloat16))

    def tensor(*shape, scale=0.5):
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        # A view of a larger tensor has memory even if it has no elements.
        values = values.to(torch.bfloat16).to(dtype)
        return torch.cat([values, values])[: len(values)] if rng.random() < 0.3 else values

    def maybe(*shape):
        return tensor(*shape) if rng.random() < 0.5 else None

    share = torch.rand((T, B, max(P, H)), generator=generator).to(torch.bfloat16).to(dtype)
    normed = rng.random() < 0.3
    differentiable = {
        "input": tensor(T, B, I),
        "weight_ih": tensor(4 * H, I),
        "weight_hh": tensor(4 * H, P),
        "bias_ih": maybe(4 * H),
        "bias_hh": maybe(4 * H),
        "peephole": maybe(3, H),
        "weight_hr": tensor(P, H) if projected else None,
        "h0": tensor(B, P),
        "c0": tensor(B, H),
        "gain_ih": tensor(4 * H) if normed else None,
        "gain_hh": tensor(4 * H) if normed else None,
    }
    fixed = {
        "lengths": torch.randint(T + 1, (B,), generator=generator) if rng.random() < 0.4 else None,
        "reverse": rng.random() < 0.5,
        "h_mask": maybe(B, P),
        "zoneout_h": share[..., :P] if rng.random() < 0.3 else None,
        "zoneout_c": share[..., :H] if rng.random() < 0.3 else None,
        "cell_clip": rng.choice((None, None, 0.3)),
    }
    return (T, B, I, H, P), differentiable, fixed


def outputs_and_gradients(engine, differentiable, fixed, used):
    leaves = {n: t.clone().requires_grad_() for n, t in differentiable.items() if t is not None}
    given = {n: leaves.get(n) for n in differentiable}
    hx = given.pop("h0"), given.pop("c0")
    y, (h_n, c_n) = lstm_fused.lstm(**given, hx=hx, **fixed, engine=engine)
    found = {"y": y, "h_n": h_n, "c_n": c_n}
    loss = sum((found[n].float().sin()).sum() for n in used)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return found | {f"d_{n}": g for n, g in zip(leaves, grads, strict=True)}


def compare_empty(seed, draws):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for n in range(draws):
        torch.set_num_threads(rng.choice((1, 2)))
        sizes, differentiable, fixed = drawn(rng, generator)
        used = rng.sample(("y", "h_n", "c_n"), rng.randint(1, 3))
        print(n, sizes, [k for k, v in (differentiable | fixed).items() if v is not None], used, flush=True)
        with torch.no_grad():
            given = {k: v for k, v in differentiable.items() if k not in ("h0", "c0")}
            hx = differentiable["h0"], differentiable["c0"]
            inferred, _ = lstm_fused.lstm(**given, hx=hx, **fixed, engine="cpp")
        expected, ours = (
            outputs_and_gradients(engine, differentiable, fixed, used) for engine in ("reference", "cpp")
        )
        assert torch.equal(inferred, ours["y"])
        bound = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 5e-2}[inferred.dtype]
        for name, value in expected.items():
            if value is None or ours[name] is None:
                assert value is ours[name], name
            else:
                torch.testing.assert_close(
                    ours[name], value, rtol=bound, atol=bound, msg=lambda m, name=name: f"{name}: {m}"
                )


@pytest.mark.parametrize("seed", [0, 1])
def test_zero_sizes_equal_the_reference(seed):
    in_a_process("compare_empty", seed, 300)


def test_a_projection_of_size_zero():
    in_a_process("project_to_size_zero")


def project_to_size_zero():
    x, w_ih, w_hh, w_hr = torch.randn(5, 3, 2), torch.randn(28, 2), torch.randn(28, 0), torch.randn(0, 7)
    y, (h_n, c_n) = lstm_fused.lstm(x, w_ih, w_hh, weight_hr=w_hr)
    assert y.shape == (5, 3, 0) and h_n.shape == (3, 0)
    torch.testing.assert_close(c_n, lstm_fused.lstm(x, w_ih, torch.zeros(28, 7))[1][1])


FORWARD = (
    "x",
    "weight_ih",
    "weight_hh",
    "bias_ih",
    "bias_hh",
    "peephole",
    "weight_hr",
    "h0",
    "c0",
    "lengths",
)
VARIANT = ("gain_hh", "h_mask", "zoneout_h", "zoneout_c")
BACKWARD = ("dy", "dh_n", "dc_n", "c", "gates", "c0", "weight_hh", "peephole", "weight_hr", "lengths")
OPERATORS = {"forward": forward_op["cpp"], "backward": backward_op["cpp"], "gradients": gradients_op["cpp"]}


def arguments_of_each(rng):
    """Draw valid arguments of every operator, by name; the products of 64 rows may be formed in blocks."""
    T, B, I, H, P = (rng.choice((1, 2, 5, 9)) for _ in range(5))
    B = rng.choice((B, B, 64))
    dtype = rng.choice((torch.float32, torch.float64, torch.bfloat16))
    shapes = {
        **{"x": (T, B, I), "weight_ih": (4 * H, I), "weight_hh": (4 * H, P), "bias_ih": (4 * H,)},
        **{
            "bias_hh": (4 * H,),
            "peephole": (3, H),
            "weight_hr": (P, H),
            "h0": (B, P),
            "c0": (B, H),
            "gain_hh": (4 * H,),
        },
        **{"h_mask": (B, P), "zoneout_h": (T, B, P), "zoneout_c": (T, B, H), "dy": (T, B, P), "y": (T, B, P)},
        **{"dh_n": (B, P), "dc_n": (B, H), "c": (T, B, H), "gates": (T, B, 4 * H), "hw": (T, B, 4 * H)},
    }
    tensors = {n: torch.rand(shape).to(dtype) for n, shape in shapes.items()}
    tensors["hw"] = tensors["hw"].to(torch.promote_types(dtype, torch.float32))
    tensors["lengths"] = torch.randint(T + 1, (B,))
    forward = {n: tensors[n] for n in FORWARD} | {"reverse": rng.random() < 0.5, "save": rng.random() < 0.5}
    backward = {n: tensors[n] for n in BACKWARD} | {"reverse": rng.random() < 0.5}
    variant = {n: tensors[n] for n in VARIANT} | {"cell_clip": 0.5}
    given = {n: tensors[n] for n in ("x", "weight_ih", "y", "h0")}
    plain = {"gain_hh": None, "hw": None}
    return {
        "forward": forward | variant,
        "backward": backward | variant | {"hw": tensors["hw"]},
        "gradients": given | backward | variant | plain,
    }


def gone(tensor):
    copy = tensor.clone()
    copy.untyped_storage().resize_(0)
    return copy


def emptied(tensor, rng):
    shape = list(tensor.shape)
    shape[rng.randrange(len(shape))] = 0
    return tensor.new_empty(shape)


def stretched(tensor, rng):
    """Expand a tensor so far that the results exceed any address space."""
    shape = list(tensor.shape)
    n = rng.randrange(len(shape))
    shape[n] = rng.choice((2**48, 2**52, 2**60 // tensor.numel()))
    return tensor.narrow(n, 0, 1).expand(shape)


# Changes of one argument. Most must raise; the others must return a result, and none may crash.
HARMS = {
    "None": lambda t, _: None,
    "scalar": lambda t, _: t.new_tensor(1.0),
    "one more dimension": lambda t, _: t[None],
    "one less dimension": lambda t, _: t[0],
    "transposed": lambda t, _: t.mT.contiguous().mT if t.dim() > 1 else t,
    "backwards": lambda t, _: t.flip(0),
    "every other": lambda t, _: torch.stack([t, t], -1)[..., 0],
    "from the middle of its memory": lambda t, _: torch.cat([t.flatten(), t.flatten()])[t.numel() :].view_as(
        t
    ),
    "expanded": lambda t, _: t[:1].expand_as(t),
    "too short": lambda t, _: t[1:],
    "empty": emptied,
    "no numbers": lambda t, _: t.new_empty(0),
    "stretched": stretched,
    "without memory": lambda t, _: gone(t),
    "half": lambda t, _: t.half(),
    "bool": lambda t, _: t.bool(),
    "int32": lambda t, _: t.int(),
    "other floats": lambda t, _: t.to(torch.float32 if t.dtype == torch.float64 else torch.float64),
    "complex": lambda t, _: t.to(torch.complex64),
    "conjugate": lambda t, _: t.to(torch.complex64).conj(),
    "imaginary": lambda t, _: torch.complex(t.double(), t.double()).conj().imag.to(t.dtype),
    "negated": lambda t, _: torch._neg_view(t),
    "sparse": lambda t, _: t.to_sparse(),
    "meta": lambda t, _: t.to("meta"),
    "mkldnn": lambda t, _: t.float().to_mkldnn(),
    "quantized": lambda t, _: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "nested": lambda t, _: torch.nested.nested_tensor([t.float()], layout=torch.strided),
    "requires grad": lambda t, _: t.clone().requires_grad_() if t.is_floating_point() else t,
    "NaN": lambda t, _: t * torch.nan if t.is_floating_point() else t,
    "infinite": lambda t, _: t / 0 if t.is_floating_point() else t,
    "negative": lambda t, _: -1 - t,
    "large": lambda t, _: t + 2**40,
}


def harm_arguments(seed, draws):
    warnings.simplefilter("ignore")  # prototype and deprecated tensor types
    torch.set_num_threads(2)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    refused, said = 0, set()
    for n in range(draws):
        which = rng.choice(list(OPERATORS))
        given = arguments_of_each(rng)[which]
        for name in (
            *VARIANT,
            "bias_ih",
            "bias_hh",
            "peephole",
            "weight_hr",
            "lengths",
            "dy",
            "dh_n",
            "dc_n",
            *(("x", "weight_ih") if which == "gradients" else ()),
        ):
            if name in given and rng.random() < 0.3 and name != "gain_hh":
                given[name] = None
        names = [k for k, v in given.items() if isinstance(v, torch.Tensor)]
        many = rng.choice((1, 1, 2))
        for name in rng.sample(names, many):
            # With a meta tensor among the arguments only the fake implementation runs.
            harm = rng.choice([harm for harm in HARMS if harm != "meta" or many == 1])
            print(n, which, name, harm, flush=True)
            given[name] = HARMS[harm](given[name], rng)
        given["cell_clip"] = rng.choice((None, 0.5, -1.0, 0.0, float("nan"), float("inf"), 1e300))
        try:
            outputs = OPERATORS[which](*given.values())
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            refused += 1
            said.add(str(error))
        else:
            for out in outputs:
                if out.device.type == "cpu" and out.numel() < 2**20:
                    out.sum().item()
    assert draws / 5 < refused < draws
    assert "" not in said and "std::bad_alloc" not in said


@pytest.mark.parametrize("seed", [0, 1])
def test_the_operators_survive_any_argument(seed):
    in_a_process("harm_arguments", seed, 1500)


def test_steps_without_rows_or_channels_are_free():
    in_a_process("run_countless_empty_steps")


def run_countless_empty_steps():
    x, zero, T = torch.empty(2**40, 0, 2), torch.empty(0, 3), 2**40
    y, _, _, c, gates = forward_op["cpp"](
        x, torch.ones(12, 2), torch.ones(12, 3), *[None] * 4, zero, zero, None, False, True
    )
    assert y.shape == (T, 0, 3)
    dxw, *_ = backward_op["cpp"](y, None, None, c, gates, zero, torch.ones(12, 3), None, None, None, False)
    assert dxw.shape == (T, 0, 12)


if __name__ == "__main__":
    globals()[sys.argv[1]](*map(int, sys.argv[2:]))
