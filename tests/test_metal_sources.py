"""The checks of the Metal sources (tests/metal/): races, barriers, bounds, address spaces, functions.

Each check is seen to fail on a planted fault: of its own samples, and of the engine's kernels.
"""

import re
import subprocess
import tempfile
from functools import cache

import pytest
import torch
from lstm_fused.kernels import check
from lstm_fused.kernels.metal import launch, library
from lstm_fused.kernels.metal.plan import Plan
from lstm_fused.kernels.plan import Layer
from metal import build, functions, mac, shader
from metal.samples import HEAD, SAMPLES, line_of, samples
from metal.shader import KernelError, compile_shader, emulated, replay

pytestmark = pytest.mark.skipif(not mac.HERE, reason=mac.LACKING)


def alone(*names):
    """Some kernels of the samples."""
    start = r"(?:template [^\n]*\n)?(?:\[\[[^\n]*\]\] )?kernel void"
    end = r"\n}\n(?:template [^;]*;\n)*"
    return HEAD + "".join(re.search(rf"(?ms)^{start} {name}\(.*?{end}", SAMPLES)[0] for name in names)


ALONE = alone("past_the_end", "past_shared", "reversed", "rotated")
RACING = alone("product", "reversed", "rotated").replace(
    "using", "#include <metal_simdgroup_matrix>\nusing", 1
)
RACING += "kernel void added(device float* x, uint i [[thread_position_in_threadgroup]]) { x[i] += 1.0f; }\n"


@cache
def racing():
    with emulated(mode="races"):
        return compile_shader(RACING)


def test_races():
    kernels = racing()
    x = torch.arange(64.0)
    kernels.reversed(x.clone(), group_size=64)
    kernels.rotated(x.clone(), group_size=64)
    with pytest.raises(
        KernelError, match=r"buffer 0, byte \d+: (read|written) by .* \(line \d+\), .* \(line \d+\)"
    ):
        kernels.reversed_badly(x.clone(), group_size=64)
    with pytest.raises(KernelError, match=r"race on buffer 0.* threadgroup 0 .* threadgroup 1"):
        kernels.added(x.clone(), threads=128, group_size=64)
    for kernel, barrier in (("reversed", "mem_flags(FLAGS)"), ("rotated", "simdgroup_barrier")):
        with emulated(silenced=line_of(barrier, RACING)), pytest.raises(KernelError, match="a race on"):
            getattr(kernels, kernel)(x.clone(), group_size=64)


@pytest.mark.parametrize("seed", range(3))
def test_races_do_not_depend_on_the_order(seed):
    a, c = torch.zeros(32, 32), torch.zeros(32, 32)
    sizes = {"threads": (128, 4), "group_size": (128, 1)}
    with emulated(seed=seed):
        racing().product_float(a, a, c, 0.0, 32, **sizes)
    barrier = line_of("simdgroup_store(sums", RACING) + 1
    with (
        emulated(seed=seed, silenced=barrier),
        pytest.raises(KernelError, match="a race on threadgroup memory"),
    ):
        racing().product_float(a, a, c, 0.0, 32, **sizes)


# Memory and threads under the sanitizers, which compile the samples again.


def recorded(kernel, *arguments, **keywords):
    """A call of a kernel in ALONE, for replay()."""
    with emulated(record=[]):
        getattr(compile_shader(ALONE), kernel)(*arguments, **keywords)
        return shader.options.record


@cache
def works(sanitizer):
    """Whether a program with a sanitizer starts here."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*build.compiler(), f"-fsanitize={sanitizer}", "-x", "c++", "-", "-o", f"{folder}/program"]
        made = subprocess.run(command, input="int main() {}", text=True, capture_output=True).returncode == 0
        return made and subprocess.run([f"{folder}/program"], capture_output=True).returncode == 0


def test_bounds():
    if not works("address"):
        pytest.skip("AddressSanitizer does not work here")
    x, y = torch.arange(64.0)[:32], torch.zeros(32)
    for kernel, arguments in (("past_the_end", (x, y)), ("past_shared", (x,))):
        replay(ALONE, "asan", recorded(kernel, *arguments, 0, threads=32, arg_casts="int32"))
        with pytest.raises(KernelError, match=f"AddressSanitizer.*\n.*READ of size 4(.*\n)*.*{kernel}"):
            replay(ALONE, "asan", recorded(kernel, *arguments, 1, threads=32, arg_casts="int32"))


def test_thread_sanitizer():
    if not works("thread"):
        pytest.skip("ThreadSanitizer does not work here")
    x = torch.arange(64.0)
    for kernel in ("reversed", "rotated"):
        calls = recorded(kernel, x, group_size=64)
        replay(ALONE, "tsan", calls)
        (barrier,) = {"reversed": ["(mem_flags(FLAGS)"], "rotated": ["simdgroup_barrier"]}[kernel]
        with pytest.raises(KernelError, match=f"ThreadSanitizer: data race(.*\n)*.*{kernel}"):
            replay(ALONE, "tsan", calls, silenced=line_of(barrier, ALONE))


needs_clang = pytest.mark.skipif(build.clang() is None, reason="no clang: make test installs it")


@needs_clang
def test_clang_compiles_the_same_text(compiled):
    x = torch.arange(64.0)
    samples("clang").reversed(x, group_size=64)
    assert torch.equal(x, torch.arange(64.0).flip(0))
    for plan in (PLANS[0], PLANS[2]):
        with emulated():
            wanted = run_engine(plan)
        launch.library.cache_clear()
        with emulated(mode="clang"):
            torch.testing.assert_close(run_engine(plan), wanted)
        launch.library.cache_clear()


@needs_clang
def test_address_spaces_are_kept_apart():
    build.check_address_spaces(SAMPLES)
    start = (
        HEAD
        + "inline float first(device const float* x) { return x[0]; }\nkernel void f(device float* x) {\n"
    )
    for wrong in (
        "threadgroup float y[2]; device float* z = y;",
        "threadgroup float y[2]; x[0] = first(y);",
        "float y[2] = {1.0f, 2.0f}; x[0] = first(y);",
        "thread float* y = x;",
        "constant float* y = x;",
    ):
        with pytest.raises(build.CompileError, match=r"address_space|address space|cannot init|no matching"):
            build.check_address_spaces(start + wrong + "}")
    build.check_address_spaces(start + "x[1] = first(x); }")


def test_a_list_of_functions():
    assert functions.unspecified(SAMPLES) == [f"line {line_of('kernel void fast_tanh', SAMPLES)}: tanh"]
    for wrong in (
        "sin(x[0])",
        "fast::exp(x[0])",
        "tanh(x[0])",
        "std::exp(x[0])",
        "simd_product(x[0])",
        "absent",
    ):
        text = f"kernel void f(device float* x [[buffer(0)]]) {{\n  x[0] = {wrong};\n}}"
        assert functions.unspecified(text) == [f"line 2: {wrong.partition('(')[0]}"]
    for wrong in ("double y = 1;", "goto end;", "texture2d<float> t;"):
        assert functions.unspecified(f"kernel void f() {{ {wrong} }}")


# The engine's kernels.

PLANS = [Plan("step", 8), Plan("step", 32), Plan("resident", 8, 32)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def layers(plan, direction):
    """Layers that take every kernel of a plan, through every barrier."""
    options = [(0, False)] if plan.kernel == "resident" else [(0, False), (5, False), (0, True)]
    return [Layer(direction, 11, plan.BB + 1, torch.float32, "ieee", *o) for o in options]


def run_engine(plan, T=2, direction=None):
    """Run the engine on small problems, both directions of time; returns all results."""
    results = []
    for way in (direction,) if direction else ("forward", "backward"):
        for layer in layers(plan, way):
            for reverse in (False, True)[: 1 if layer.P or layer.varied else 2]:
                operands = check.problem(plan, layer, T, reverse)
                with torch.no_grad():
                    results += getattr(launch, way)(*operands, plan=plan)
    return results


def line_of_first_barrier(text):
    return text.count("\n", 0, re.search(r"\n\s*threadgroup_barrier", text).start()) + 2


@pytest.fixture
def compiled(monkeypatch):
    """The kernels of the mode of the emulation."""
    monkeypatch.setattr(launch, "library", cache(library.library.__wrapped__))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.kernel}-{plan.BB}")
def test_the_engine_has_no_race_and_needs_every_barrier(plan, compiled):
    lines = library.source(torch.float32, plan).split("\n")
    barriers = [n for n, line in enumerate(lines, 1) if re.match(r"\s*(threadgroup|simdgroup)_barrier", line)]
    assert len(barriers) > 3
    with emulated(mode="races"):
        run_engine(plan)
    needless = []
    for barrier in barriers:
        with emulated(mode="races", silenced=barrier):
            try:
                run_engine(plan)
                needless.append(f"line {barrier}: {lines[barrier - 1]}")
            except KernelError:
                pass
    assert not needless


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.kernel}-{plan.BB}")
def test_the_order_of_threads_changes_no_bit_of_the_engine(plan, compiled):
    found = []
    for seed in range(3):
        with emulated(seed=seed):
            found.append(run_engine(plan))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    assert all(v.isfinite().all() for v in found[0])
    barrier = line_of_first_barrier(library.source(torch.float32, plan))
    with emulated(seed=1, silenced=barrier):
        assert not all(map(torch.equal, found[0], run_engine(plan)))


@pytest.mark.parametrize("mode", ["asan", "tsan"])
@pytest.mark.parametrize("plan", PLANS[1:], ids=lambda plan: f"{plan.kernel}-{plan.BB}")
def test_the_engine_under_sanitizers(mode, plan, compiled):
    if not works({"asan": "address", "tsan": "thread"}[mode]):
        pytest.skip(f"{mode} does not work here")
    text = library.source(torch.float32, plan)
    with emulated(record=[]):
        run_engine(plan)
        record = shader.options.record
    replay(text, mode, record)
    number, grid, group, buffers = record[0]
    if mode == "tsan":
        planted, error = {"record": record, "silenced": line_of_first_barrier(text)}, "data race"
    else:
        shorter = [data[:-2] if n else data for n, data in enumerate(buffers)]  # all but the sizes
        planted, error = {"record": [(number, grid, group, shorter)]}, "heap-buffer-overflow"
    with pytest.raises(KernelError, match=error):
        replay(text, mode, **planted)


@needs_clang
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_engine_keeps_address_spaces_apart(dtype):
    for plan in (PLANS[0], PLANS[2]):
        text = library.source(dtype, plan)
        build.check_address_spaces(text)
        wrong = re.sub(r"(\bis_valid\([^)]*)device", r"\1threadgroup", text, count=1)
        with pytest.raises(build.CompileError, match="no matching function for call to 'is_valid'"):
            build.check_address_spaces(wrong)


def test_the_engine_uses_listed_functions_alone():
    for plan in PLANS:
        text = library.source(torch.float32, plan)
        assert functions.unspecified(text) == []
        wrong = text.replace("precise::exp(r)", "fast::exp(r)").replace(
            "real s = tanh_by_exp(c)", "real s = tanh(c)"
        )
        assert [found.split(": ")[1] for found in functions.unspecified(wrong)] == ["fast::exp", "tanh"]
