"""Compiles Metal text as C++, in several modes; build/metal keeps the results, by hashes."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from torch.utils import cpp_extension

from . import source

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
BUILT = HERE.parent.parent / "build" / "metal"
WARNINGS = (
    *("-Wall", "-Wextra", "-Werror", "-pedantic-errors", "-Wno-unknown-pragmas", "-Wno-sign-compare"),
    *("-Wno-unused-parameter", "-Wno-unused-function", "-Wno-unused-variable"),
)
COMMON = ("-std=c++14", "-fPIC", "-ffp-contract=off", "-ftrivial-auto-var-init=pattern", f"-I{INCLUDE}")
GCC = ("-fno-gnu-unique", "-Wno-attributes", "-Wno-literal-suffix", "-Wno-maybe-uninitialized")
CLANG = ("-Wno-unknown-attributes", "-Wno-user-defined-literals")
LINKER = ("-fuse-ld=gold",) if shutil.which("ld.gold") else ()  # takes a quarter of the time of ld
# Flags of the kernels and of the runtime.
MODES = {
    "fast": (("-O2",), ("-O2",)),
    "races": (
        ("-O1", "-g1", "-fsanitize=thread", "-DMETAL_RACES", "-DMETAL_SANITIZED"),
        ("-O2", "-DDETECT_RACES"),
    ),
    "clang": (("-O2",), ("-O2",)),
    "double": (("-O1", "-DMETAL_DOUBLE"), ("-O2",)),
    "asan": (
        ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        ("-O1", "-g1", "-fsanitize=address"),
    ),
    "tsan": (
        ("-O1", "-g1", "-fsanitize=thread", "-DMETAL_SANITIZED"),
        ("-O1", "-fno-builtin", "-DTELL_THREAD_SANITIZER"),
    ),
}
PROGRAMS = ("asan", "tsan")  # as the sanitizers' runtimes cannot be loaded into Python


class CompileError(source.MetalError):
    """What the C++ compiler said."""


def compiler() -> list[str]:
    """Return the C++ compiler."""
    return cpp_extension.get_cxx_compiler().split()


def clang() -> list[str] | None:
    """Return clang, if there is one."""
    if zig := find_spec("ziglang"):
        headers = Path(zig.origin).parent / "lib" / "include"
        return [sys.executable, "-m", "ziglang", "clang", "-isystem", str(headers)]
    found = subprocess.run(["which", "clang++"], capture_output=True, text=True)
    return [found.stdout.strip()] if found.returncode == 0 else None


def ran(command: list, text: str | None = None) -> str:
    """Return what a command prints; CompileError if it fails."""
    done = subprocess.run([*map(str, command)], input=text, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr.strip())
    return done.stdout


@cache
def fingerprint() -> str:
    """Hash of the emulation's C++ and the compiler."""
    files = [
        path for path in sorted(HERE.rglob("*")) if path.suffix in (".h", ".cpp") or path.parent == INCLUDE
    ]
    version = subprocess.run([*compiler(), "--version"], capture_output=True).stdout
    return hashlib.sha256(b"".join(path.read_bytes() for path in files) + version).hexdigest()


def preprocessed(text: str) -> str:
    """Expand the text's own macros; what it includes stays out, as the header stands before it."""
    text = re.sub(r"(?m)^[ \t]*#[ \t]*include[ \t]*<metal_\w+>", "", source.without_comments(text))
    flags = ("-E", "-undef", "-nostdinc", "-D__METAL__", "-D__METAL_VERSION__=310", "-x", "c++", "-")
    expanded = ran([*compiler(), *flags], text)
    # Standard line directives, of the text alone.
    expanded = re.sub(r'(?m)^# (0 .*|\d+ "<(built-in|command-line)>").*', "", expanded)
    return re.sub(r'(?m)^# (\d+) "<stdin>".*', r'#line \1 "kernels.metal"', expanded)


def translated(text: str) -> tuple[list[source.Kernel], str]:
    """Return the kernels of a Metal text and the text as C++."""
    if not text.isascii():
        raise source.MetalError("PyTorch passes the text on as ASCII, which this is not")
    expanded = preprocessed(text)
    head = '#include "entry.h"\n#include <metal_stdlib>\n'
    return source.kernels(expanded), f"{head}{source.share(expanded)}\n"


def entries(kernels: list[source.Kernel]) -> str:
    """Return the table of the kernels, in C++."""
    lines = ['#line 1 "entries"', "#undef device", "#undef constant", "#undef threadgroup", "#undef thread"]
    lines += ["#undef kernel", "namespace emulation {"]
    for number, kernel in enumerate(kernels):
        fields = (
            f"{{false, {bound}}}"
            if isinstance(bound, int)
            else f"{{true, offsetof(Thread, {source.ATTRIBUTES[bound]})}}"
            for bound in kernel.bindings
        )
        lines += [
            f"static const Binding bindings_{number}[] = {{{', '.join(fields)}}};",
            f"static void entry_{number}(void* const* arguments) {{",
            f"  call(&::{kernel.function}, bindings_{number}, arguments);",
            "}",
            f"static int describe_{number}(Parameter* out) {{ return describe(&::{kernel.function}, out); }}",
        ]
    table = ", ".join(f"{{entry_{number}, describe_{number}}}" for number in range(len(kernels)))
    lines += [f"extern const Kernel kernels[] = {{{table}}};"]
    lines += [f"extern const unsigned kernel_count = {len(kernels)};", "}", ""]
    return "\n".join(lines)


def runtime(mode: str) -> list[Path]:
    """Return the objects of the runtime."""
    BUILT.mkdir(parents=True, exist_ok=True)
    names = ("runtime", "races", *(("replay",) if mode in PROGRAMS else ()))
    objects = []
    for name in names:
        flags = MODES[mode][1]
        key = hashlib.sha256(repr((fingerprint(), name, flags)).encode()).hexdigest()[:20]
        target = BUILT / f"{name}-{key}.o"
        if not target.exists():
            strict = ("-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Werror")
            compiled([*strict, *flags, "-c", HERE / f"{name}.cpp"], target)
        objects.append(target)
    return objects


def compiled(arguments: list, target: Path) -> Path:
    """Compile into a file of its own and move that to its place, so that processes do not meet."""
    partial = target.with_suffix(f".{os.getpid()}")
    ran([*compiler(), *arguments, "-o", partial])
    partial.replace(target)
    return target


def build(text: str, mode: str) -> tuple[list[source.Kernel], Path]:
    """Return the kernels of a Metal text, and the library or program with them."""
    kernels, code = translated(text)
    if mode == "double":  # literals too
        code = re.sub(r"(?<![\w.])((?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?)[fF]\b", r"\1", code)
    if mode == "clang":  # which has no attributes in explicit instantiations
        code = source.ATTRIBUTE.sub("", code)
    code += entries(kernels)
    flags = MODES[mode][0]
    key = hashlib.sha256(repr((fingerprint(), code, mode, flags)).encode()).hexdigest()[:20]
    target = BUILT / f"kernels-{key}{'' if mode in PROGRAMS else '.so'}"
    if not target.exists():
        objects = runtime(mode)
        path, unit = BUILT / f"kernels-{key}.{os.getpid()}.cpp", BUILT / f"kernels-{key}.{os.getpid()}.o"
        path.write_text(code)
        command = [*clang(), *CLANG] if mode == "clang" else [*compiler(), *GCC]
        try:
            ran([*command, *COMMON, *WARNINGS, *flags, "-c", path, "-o", unit])
            link = flags if mode in PROGRAMS else ("-shared", "-Wl,-Bsymbolic", *LINKER)
            compiled([*link, unit, *objects], target)
        finally:
            path.unlink()
            unit.unlink(missing_ok=True)
    return kernels, target


def with_lines(message: str, library: str) -> str:
    """Replace positions in a library, @hexadecimal, by lines of the Metal text."""

    def line(match: re.Match) -> str:
        command = ["addr2line", "-i", "-e", library, hex(int(match[1], 16) - 1)]
        found = subprocess.run(command, capture_output=True, text=True).stdout
        lines = re.findall(r"\bkernels[^/:]*:(\d+)", found)
        return f"line {lines[0]}" if lines else match[0]

    return re.sub(r"@([0-9a-f]+)", line, message)


def check_address_spaces(text: str) -> None:
    """Have clang see device, constant and threadgroup as address spaces; CompileError if they are mixed."""
    code = source.ATTRIBUTE.sub("", translated(text)[1])
    flags = ("-std=c++14", "-fsyntax-only", "-DMETAL_ADDRESS_SPACES", f"-I{INCLUDE}", "-Wno-unknown-pragmas")
    with tempfile.NamedTemporaryFile("w", suffix=".cpp") as file:
        file.write(code)
        file.flush()
        ran([*clang(), *flags, *CLANG, file.name])
