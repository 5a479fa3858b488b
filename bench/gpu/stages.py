"""Plans a day on a GPU: stages in their order, each of jobs that run side by side."""

import ast
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.gpu.commands import QUIET, TOOLS, cuda_tool, limited, pytest, under
from bench.gpu.jobs import UNCHECKED, Job
from bench.gpu.link import ROOT


def exchanges() -> dict[str, str]:
    """`EXCHANGES` of kernels/plan.py, read without importing what that module needs."""
    for node in ast.parse((ROOT / "kernels/plan.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXCHANGES":
            return dict(ast.literal_eval(node.value))
    raise ValueError("kernels/plan.py has no EXCHANGES")


KERNELS = tuple(exchanges())
# Whose programs wait for each other.
WAITING = tuple(name for name, exchange in exchanges().items() if exchange in ("flags", "counters"))
# Whose blocks do, if only those of a cluster.
MAY_HANG = (*WAITING, *(name for name, exchange in exchanges().items() if exchange == "clusters"))
# In Gluon, which Triton's interpreter does not run; as in kernels/plan.py.
GLUON = tuple(name for name, exchange in exchanges().items() if exchange in ("clusters", "flags"))
# Shapes of grids, by name as `bench.gpu.looks` has them; those of a line in one process.
MANY = (
    ("H768", "graph"),
    ("H1024", "two-at-once"),
    ("H512", "two-too-many"),
    ("tiles-32", "tiles-64", "waves", "in-turn"),
)
CLUSTERS = (("graph", "two-at-once"), ("two-too-many", "waves"))
GRIDS = {
    **dict.fromkeys(WAITING, MANY),
    **{"cluster": CLUSTERS, "step": (("wide", "graph"),), "resident": (("rows",),)},
}
if lacking := set(KERNELS) - GRIDS.keys():
    raise ValueError(f"bench/gpu/stages.py: GRIDS lacks {', '.join(lacking)} of kernels/plan.py")
# Of `bench.gpu.speed`, what matters most first; the last one does not fit on an H100 at once.
SIZES = ("H768_B16", "H256_B64", "H512_B64", "H1024_B64")
SECONDS = dict(zip(SIZES, (40, 30, 30, 40), strict=True))
DIRECTIONS = ("H768_B16", "H256_B16")  # sizes at which both directions of a layer run at the same time
DTYPES = ("bfloat16", "float16")
PARTS = 14  # processes of tests, which leaves two processors of sixteen to the tools
ONE_TEST = limited(45)
PAST_31 = "past_two_to_the_31"
SHOWN = 8  # of what failed, that is looked into
NO_WAITING = {"LSTM_FUSED_GPU": "step"}


@dataclass(frozen=True)
class Stage:
    """Jobs by name, all started at once, and the seconds after which they are ended."""

    name: str
    seconds: float
    jobs: Mapping[str, Job]
    leaves: float = 0.0  # seconds for what stands behind it, whatever is left of the whole


@dataclass(frozen=True)
class Place:
    """Where a day takes place."""

    device: str
    small: bool
    work: Path
    out: Path

    @property
    def options(self) -> list[str]:
        """As the programs take them."""
        return ["--device", self.device, *["--small"] * self.small]

    @property
    def sizes(self) -> Sequence[str]:
        """What is timed."""
        return ("tiny",) if self.small else SIZES

    @property
    def dtypes(self) -> Sequence[str]:
        """In which."""
        return DTYPES[:1] if self.small else DTYPES

    @property
    def linked(self) -> Path:
        """Where the package is put together."""
        return self.work / "linked"

    @property
    def compiled(self) -> Path:
        """Where what is compiled for a failing case goes."""
        return self.work / "compiled"


def alone(name: str, seconds: float, job: Job) -> Stage:
    """A stage of one job."""
    return Stage(name, seconds, {name: job})


def first(place: Place, kernels: Sequence[str] = KERNELS) -> list[Stage]:
    """The stages that are run first, the quickest answers first; about 420 s."""
    waiting = any(kernel in kernels for kernel in MAY_HANG)
    kernels = [kernel for kernel in kernels if place.device == "cuda" or kernel not in GLUON]
    smoke = {f"smoke-{kernel}": look(place, "smoke", kernel) for kernel in kernels}
    # By default: whatever the package itself makes of the card.
    smoke["smoke-default"] = look(place, "smoke", "default", variables={} if waiting else NO_WAITING)
    grids = {
        f"grid-{kernel}-{shapes[0]}": look(place, "grid", kernel, *shapes)
        for kernel in kernels
        for shapes in (GRIDS[kernel][:1] if place.small else GRIDS[kernel])
    }
    # The kernels that the numbers need are compiled beside the grids, when the card is shared anyway.
    warm = {
        f"warm-{size}-{dtype}": numbers(place, waiting, size, "--once", "--dtypes", dtype)
        for size in place.sizes
        for dtype in place.dtypes
    } | {"warm-directions": directions(place, waiting, "--once")}
    timed = [
        alone(
            f"numbers-{size}",
            120 if place.small else SECONDS[size],
            replace(numbers(place, waiting, size, "--dtypes", *place.dtypes), shown=True),
        )
        for size in place.sizes
    ]
    left_out = [] if waiting else [f"not {kernel}" for kernel in MAY_HANG]
    past_31 = Job(on_gpu(place, "-k", " and ".join([PAST_31, *left_out])))
    return [
        Stage("probe", 30, {"probe": replace(look(place, "probe"), shown=True), **exchange_built(place)}),
        Stage("smoke", 45, smoke),
        Stage("grids", 60, grids | warm),
        *timed,
        alone("directions", 60 if place.small else 20, replace(directions(place, waiting), shown=True)),
        *exchange(place),
        tests(place, waiting, left_out),
        *([alone("past-31", 40, past_31)] if place.device == "cuda" else []),
    ]


def look(place: Place, *arguments: str, variables: Mapping[str, str] = UNCHECKED) -> Job:
    """One of the programs of `bench.gpu.looks`."""
    command = [sys.executable, "-m", "bench.gpu.looks", *arguments, *place.options]
    return Job(command, {**QUIET, **variables})


def numbers(place: Place, waiting: bool, *arguments: str) -> Job:
    """Times of everyone at a size."""
    without, variables = ([], UNCHECKED) if waiting else (["--without", *MAY_HANG], NO_WAITING)
    return look(place, "numbers", *arguments, *without, variables=variables)


def directions(place: Place, waiting: bool, *arguments: str) -> Job:
    """Both directions of a layer at the same time, and one after the other."""
    sizes = place.sizes if place.small else DIRECTIONS
    return look(place, "directions", *sizes, *arguments, variables=UNCHECKED if waiting else NO_WAITING)


def on_gpu(place: Place, *arguments: str) -> list[str]:
    """The command that runs tests of tests/gpu."""
    return pytest(place.device, "-v", *ONE_TEST, "tests/gpu", *arguments)


def tests(place: Place, waiting: bool, left_out: Sequence[str]) -> Stage:
    """All of tests/gpu but those that take most of the memory, and two tools beside them."""
    if place.small:
        return Stage("tests", 170, {"tests-0": Job(on_gpu(place, "-k", "same_bits"))})
    command = on_gpu(place, "-k", " and ".join([f"not {PAST_31}", *left_out]))
    variables = UNCHECKED if waiting else NO_WAITING
    jobs = {f"tests-{k}": Job([*command, "--part", f"{k}/{PARTS}"], variables) for k in range(PARTS)}
    # There are more than these seconds hold; those behind the last one are run by the second command.
    tools = sanitized_tests(place, "-v", *ONE_TEST)
    return Stage("tests", 250, jobs | tools, leaves=35)


def exchange_built(place: Place) -> dict[str, Job]:
    """The compiler of exchange.cu, where there is one."""
    compiler = cuda_tool("nvcc", place.device)
    if compiler is None:
        return {}
    source, program = ROOT / "bench/gpu/exchange.cu", place.work / "exchange"
    return {"nvcc": Job([compiler, "-O3", "-arch=sm_90", "-o", str(program), str(source)], advice=True)}


def exchange(place: Place) -> list[Stage]:
    """The benchmark exchange.cu, if it can be built."""
    job = replace(look(place, "exchange", str(place.work / "exchange")), advice=True, shown=True)
    return [alone("exchange", 20, job)] if exchange_built(place) else []


def sanitized(
    place: Place, name: str, command: Sequence[str], tools: Sequence[str] = tuple(TOOLS)
) -> dict[str, Job]:
    """A command once more under each tool that is there, which sees where a tensor of its own memory ends."""
    variables = UNCHECKED | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return {
        f"{name}-{tool}": Job([*prefix, *command], variables, advice=True)
        for tool in tools
        if (prefix := under(tool, place.device))
    }


def sanitized_tests(place: Place, *options: str) -> dict[str, Job]:
    """The tests that each tool runs."""
    found: dict[str, Job] = {}
    for tool in TOOLS:
        command = pytest(place.device, *options, *TOOLS[tool].tests)
        found |= sanitized(place, "tests", command, [tool])
    return found


def green(place: Place, seen: Mapping[str, Sequence[str]]) -> list[Stage]:
    """The second command, where all was right: what is fastest, where time goes, the other tests, the CPU.

    Args:
        place: where.
        seen: by job, the tests that it has run already.
    """
    tune = ["bench.gpu", "tune", *place.options, "--seconds", "75", "--out", str(place.out)]
    parts = 2 if place.small else PARTS
    chosen = ("tests/test_errors.py",) if place.small else ("tests", "--ignore=tests/gpu")
    command = pytest(place.device, "-v", *ONE_TEST, *chosen)
    rest = {f"rest-{k}": Job([*command, "--part", f"{k}/{parts}"]) for k in range(parts)}
    engine, linked = place.work / "engine", place.linked / "lstm_fused"
    build = [sys.executable, "setup.py", "-q", "build_ext", "-b", str(engine), "-t", str(engine / "objects")]
    cpu = ["--threads", *map(str, (1, 2, 4, 8, 16)), "--sizes", "mnist", "mid", "wide", "--rounds", "3"]
    race = [sys.executable, "-m", "bench", *cpu, "--seconds", "1", "--json", str(place.work / "threads.json")]
    use = f'cp "{engine}"/lstm_fused/_cpp*.so "{linked}/_cpp.so" && exec "$@"'
    threads = Job(["sh", "-c", use, "sh", *race], {"OMP_NUM_THREADS": "16"}, advice=True, shown=True)
    left = {}
    for name, job in tests(place, True, []).jobs.items():
        done = [option for test in seen.get(name, ()) for option in ("--deselect", test)]
        if not job.advice:
            left[name] = replace(job, command=[*job.command, *done])
    return [
        alone("tune", 95, Job([sys.executable, "-m", *tune], shown=True)),
        alone("profile", 30, profile(place)),
        Stage("tests", 75, left | {"engine": Job(build, {"MAX_JOBS": "8"}, advice=True)}),
        Stage("rest", 40, rest),
        alone("threads", 60, threads),
    ]


def profile(place: Place) -> Job:
    """The chosen kernel at its first size under Nsight Compute, or by PyTorch's own profiler."""
    job = replace(look(place, "profile"), advice=True)
    program = cuda_tool("ncu", place.device)
    if program is None:
        return job
    options = ["--clock-control", "none", "--set", "full", "-k", "regex:lstm_", "-c", "2"]
    return replace(job, command=[program, *options, *job.command, "--plain"])


def wrong(place: Place, failed: Sequence[str]) -> list[Stage]:
    """The second command, where numbers were wrong: what failed, alone, again and under compute-sanitizer.

    Args:
        place: where.
        failed: names of jobs and of tests. Of many, some from everywhere in the list.
    """
    known = {name: job for stage in first(place) for name, job in stage.jobs.items()}
    again: dict[str, Job] = {}
    checked: dict[str, Job] = {}
    for n, name in enumerate(failed[:: max(1, -(-len(failed) // SHOWN))]):
        job = known.get(name) or Job(pytest(place.device, "-v", *ONE_TEST, name))
        # A folder of its own for what is compiled for it, which is to be looked at.
        variables = {"TRITON_CACHE_DIR": str(place.compiled / str(n)), "CUDA_LAUNCH_BLOCKING": "1"}
        command = ["sh", "-c", 'echo "$0"; exec "$@"', name, *job.command]
        again[f"again-{n}"] = Job(command, {**job.variables, **variables})
        checked |= sanitized(place, f"again-{n}", command)
    return [Stage("again", 90, again), Stage("sanitizers", 150, checked)]


def hang(place: Place) -> list[Stage]:
    """The second command, where something hung: all but the kernels whose programs wait for each other.

    Without what the first command has done already, or has to leave: it has less time.
    """
    rest = ("numbers-H512_B64", "numbers-H1024_B64", "directions", "exchange", "past-31")
    stages = first(place, [kernel for kernel in KERNELS if kernel not in MAY_HANG])
    return [stage for stage in stages if stage.name not in rest]
