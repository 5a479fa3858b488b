"""The emulation of Metal (tests/metal/): its library, its calling convention and its threads."""

import numpy as np
import pytest
import torch
from metal import mac
from metal.samples import HEAD, samples
from metal.shader import KernelError, compile_shader, emulated
from metal.source import MetalError

pytestmark = pytest.mark.skipif(not mac.HERE, reason=mac.LACKING)
close = torch.testing.assert_close


def test_functions():
    x = torch.tensor([-20, -1.5, -0.3, 0.1, 0.7, 3, 20])
    out = torch.full((13, 7), torch.nan)
    samples().functions(x, out, 7, threads=32)
    wanted = [x.exp(), x.tanh(), x.abs().log(), x.abs().sqrt(), x.abs().rsqrt(), x.abs(), x.sign(), x * x + 1]
    wanted += [x.clamp(-1, 1), x.clamp(min=0.25), x.clamp(max=0.25), torch.where(x > 0, 2.0, x), 1 / x]
    close(out, torch.stack(wanted))


def test_tanh_of_fast_math_overflows_as_on_the_gpu():
    x, out = torch.tensor([0.5, 100]), torch.empty(2)
    samples().fast_tanh(x, out)
    assert abs(out[0] - x[0].tanh()) < 1e-6 and out[1].isnan()


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat", torch.bfloat16)])
def test_rounding_of_small_numbers(name, dtype):
    """To nearest even, with subnormal numbers, infinities and NaN."""
    bits = torch.randint(-(2**31), 2**31, (20000,), generator=torch.Generator().manual_seed(0))
    a = bits.to(torch.int32).view(torch.float32)
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    a = torch.cat(
        [a, every.float(), torch.randn(1000), torch.rand(1000) * 2**-15, torch.tensor([65519.9, 65520])]
    )
    # Halfway between two neighbours.
    halves = (every[:-1].double() + every[1:].double()) / 2
    a = torch.cat([a, halves[halves.isfinite()].float()])
    b = torch.cat([torch.ones(5), torch.randn(len(a) - 5)])
    out = torch.empty(6, len(a), dtype=dtype)
    getattr(samples(), f"arithmetic_{name}")(a, b, out, len(a))
    x, y = a.to(dtype), b.to(dtype)
    wanted = torch.stack([x, y, x + y, x - y, x * y, x / y])
    assert torch.equal(out.nan_to_num(3), wanted.nan_to_num(3)) and torch.equal(out.isnan(), wanted.isnan())


def test_operations_of_a_simdgroup():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    out = torch.empty(12, 64)
    samples().lanes(x, out, 64, threads=64, group_size=64, arg_casts={2: "int32"})
    lane = torch.arange(32)
    for rows, v in zip(out.split(32, dim=1), x.split(32), strict=True):
        wanted = [v.sum().expand(32), v.max().expand(32), v.min().expand(32), v.flip(0), v[lane ^ 5]]
        wanted += [v[torch.where(lane < 3, lane, lane - 3)], v[torch.where(lane > 28, lane, lane + 3)]]
        wanted += [v[7].expand(32), (v > 2).any().float().expand(32), (v > -1).all().float().expand(32)]
        wanted += [v.cumsum(0), v.cumsum(0) - v]
        close(rows, torch.stack(wanted))


@pytest.mark.parametrize(("name", "dtype"), [("float", torch.float32), ("bfloat", torch.bfloat16)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_products_of_matrices(name, dtype, seed):
    n, generator = 64, torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator).to(dtype) for _ in range(2))
    c = torch.full((n, n), torch.nan)
    kernel = getattr(samples(), f"product_{name}")
    assert kernel.max_threads_per_threadgroup == 128
    with emulated(seed=seed):
        kernel(a, b, c, 0.5, n, threads=(n // 32 * 128, n // 8), group_size=(128, 1))
    wanted = a.double() @ b.double().T
    for row in range(0, n, 8):
        wanted[row : row + 8, row : row + 8] += 0.5 * torch.eye(8)
    close(c, wanted.float(), rtol=1e-5, atol=1e-5)


def test_double_precision_of_the_same_text():
    n, generator = 32, torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator, dtype=torch.float64) for _ in range(2))
    c = torch.empty(n, n, dtype=torch.float64)
    samples("double").product_float(a, b, c, 0.1, n, threads=(128, n // 8), group_size=(128, 1))
    close(c - a @ b.T, torch.block_diag(*[0.1 * torch.eye(8, dtype=torch.float64)] * 4), rtol=0, atol=1e-13)
    with pytest.raises(TypeError, match="no float64"):
        samples().product_float(a, b, c, 0.1, n)


def test_positions():
    """A grid that is no multiple of the threadgroup: those at its edges are smaller."""
    grid, group = (10, 3, 3), (4, 2, 2)
    out = torch.full((3, 3, 10, 16), -1, dtype=torch.int32)
    samples().positions(out, threads=grid, group_size=group)
    z, y, x = np.meshgrid(*(np.arange(n) for n in grid[::-1]), indexing="ij")
    at = np.stack([x, y, z], -1)
    inside, size = at % group, np.minimum(np.array(grid) - at // group * group, group)
    index = inside[..., 0] + size[..., 0] * (inside[..., 1] + size[..., 1] * inside[..., 2])
    wanted = np.concatenate([at, inside, at // group, size, index[..., None], index[..., None] % 32], -1)
    assert np.array_equal(out[..., :14].numpy(), wanted)


def test_numbers_are_passed_as_pytorch_does():
    out = torch.empty(8)
    arguments = [2**40, 1.5, -3, (7, 2**33), 0.1, [0.25, 0.5]]
    samples().numbers(out, *arguments, arg_casts={3: "int32", 5: "fp16"})
    close(out, torch.tensor([2**40, 1.5, -3, 7, 2**33, torch.tensor(0.1).half().item(), 0.25, 0.5]))
    for i, wrong, error in (
        (0, 1.0, "passed as f"),
        (1, 1, "passed as i"),
        (3, (7,), "has 8 bytes, the kernel reads 16"),
        (5, [], "Empty list"),
        (1, "x", "Unsupported argument type"),
    ):
        with pytest.raises((TypeError, RuntimeError), match=error):
            samples().numbers(
                out, *arguments[:i], wrong, *arguments[i + 1 :], arg_casts={3: "int32", 5: "fp16"}
            )


def test_arguments_are_those_of_the_kernel():
    x = torch.zeros(32)
    for arguments, error in (
        ((x.half(), x), "the kernel reads torch.float32"),
        ((x.double(), x), "MPS has no float64"),
        ((x.int(), x), "the kernel reads torch.float32"),
        ((x,), "takes buffers"),
        ((x, 1.0), "the parameter is not constant"),
        ((x.to("meta"), x), "not meta"),
    ):
        with pytest.raises((TypeError, RuntimeError), match=error):
            samples().fast_tanh(*arguments)
    for sizes, error in (
        ({"threads": 0}, "empty grid"),
        ({"threads": (2, 2), "group_size": 2}, "same number of dimensions"),
        ({"threads": 2048, "group_size": 2048}, "exceeds 1024"),
        ({"threads": (1, 1, 1, 1)}, "dimensions"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=error):
            samples().fast_tanh(x, x, **sizes)
    with pytest.raises(RuntimeError, match="function state object for: absent"):
        _ = samples().absent
    assert "fast_tanh" in dir(samples())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("kernel void f(device float* x) { x[0] = y; }", "kernels.metal:3.*'?y.? was not declared"),
        ("kernel void f(device float* x) { if constexpr (true) x[0] = 1.0f; }", "if constexpr"),
        ("kernel void f(device half* x) { x[0] = 1.0f; }", "no match for|cannot convert|no viable"),
        ("kernel int f(device float* x) { return 1; }", "a kernel returns void"),
        ("kernel void f(device float* x [[buffer(31)]]) {}", "0 to 30"),
        ("kernel void f(device float* x [[buffer(1)]], device float* y [[buffer(1)]]) {}", "once each"),
        ("kernel void f(device float* x, uint i) {}", "no known attribute in uint i"),
        ("kernel void f(device float* x, threadgroup float* y [[threadgroup(0)]]) {}", "no known attribute"),
        (
            "inline void g() { threadgroup float x[2]; } kernel void f(device float* x) {}",
            "outside of a kernel",
        ),
        ("kernel void f(device float* é) {}", "ASCII"),
    ],
)
def test_what_metal_refuses(text, error):
    with pytest.raises(MetalError, match=f"(?s){error}"):
        compile_shader(HEAD + text)


def test_memory_starts_as_nan():
    out = torch.zeros(128)
    samples().poisoned(out, threads=32)
    assert out[1] == 5 and out[[0, *range(2, 32)]].isnan().all() and out[64:].isnan().all()
    with emulated():
        assert torch.empty(3).isnan().all()
    assert torch.mps.compile_shader is not compile_shader


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (0, "a simdgroup has diverged: lane 0 is at the operation of line"),
        (1, "the barrier of line .* is not reached by all threads"),
        (2, "threads wait at the barriers of lines"),
        (3, "a simdgroup has diverged"),
    ],
)
def test_divergence(how, error):
    with pytest.raises(KernelError, match=error):
        samples().diverging(torch.zeros(64), how, threads=64, arg_casts="int32")
    with pytest.raises(KernelError, match="needs 32 lanes, this one has 20"):
        samples().lanes(torch.zeros(52), torch.zeros(12, 52), 52, threads=52, arg_casts="int32")


def test_threadgroup_memory_is_limited():
    with pytest.raises(KernelError, match="32772 bytes of threadgroup memory, more than 32768"):
        samples().greedy(torch.zeros(32))
