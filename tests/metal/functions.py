"""The part of Metal that our kernels may use, and where its specification defines each name.

Sections and tables are those of the Metal Shading Language Specification, version 4 (2025-06-05).
"""

import re

from . import source

KEYWORDS = frozenset(
    (
        *("break", "case", "const", "constexpr", "continue", "default", "do", "else", "enum", "false", "for"),
        *("if", "inline", "namespace", "nullptr", "return", "sizeof", "static", "static_assert", "struct"),
        *("switch", "template", "true", "typedef", "typename", "using", "void", "while"),
    )
)
# Name to section.
SPECIFIED = {
    # Types
    **dict.fromkeys(("bool", "half", "bfloat", "float"), "2.1, table 2.1"),
    **dict.fromkeys(("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong"), "2.1, table 2.1"),
    **dict.fromkeys(("uint2", "uint3", "ushort3", "ulong2", "float2", "float4"), "2.2"),
    "simdgroup_matrix": "2.4: half, bfloat or float, 8 by 8",
    # Address spaces
    "device": "4.1",
    "constant": "4.2",
    "thread": "4.3",
    "threadgroup": "4.4",
    # Functions and their arguments
    "kernel": "5.1.3",
    "max_total_threads_per_threadgroup": "5.1.3",
    "host_name": "5.1.10",
    "buffer": "5.2.1",
    **dict.fromkeys(source.ATTRIBUTES, "5.2.3.6, table 5.8"),
    # The library
    "metal_stdlib": "6.1",
    "metal_simdgroup_matrix": "6.7",
    "metal": "6.1",
    "precise": "6.5: of a math function, in single precision",
    **dict.fromkeys(("clamp", "mix", "sign"), "6.2, table 6.1"),
    **dict.fromkeys(("min", "max"), "6.3, table 6.2, and 6.5, table 6.4"),
    **dict.fromkeys(("select",), "6.4, table 6.3"),
    **dict.fromkeys(("abs", "copysign", "exp", "fabs", "fma", "log", "sqrt", "rsqrt"), "6.5, table 6.4"),
    **dict.fromkeys(("divide", "tanh"), "6.5, table 6.4; tanh as precise::tanh alone, see 8.4, table 8.2"),
    "make_filled_simdgroup_matrix": "6.7.1, table 6.9",
    "simdgroup_load": "6.7.1, table 6.9",
    "simdgroup_store": "6.7.1, table 6.9",
    # The table has one T. Sums in float of half and bfloat are beyond it; llama.cpp's kernels rely on them.
    "simdgroup_multiply_accumulate": "6.7.2, table 6.10",
    "threadgroup_barrier": "6.9.1, table 6.12",
    "simdgroup_barrier": "6.9.1, table 6.12",
    **dict.fromkeys(("mem_flags", "mem_none", "mem_device", "mem_threadgroup"), "6.9.1, table 6.13"),
    **dict.fromkeys(("simd_broadcast", "simd_shuffle", "simd_shuffle_xor"), "6.9.2, table 6.14"),
    **dict.fromkeys(("simd_shuffle_up", "simd_shuffle_down"), "6.9.2, table 6.14"),
    **dict.fromkeys(("simd_any", "simd_all"), "6.9.2, table 6.14"),
    **dict.fromkeys(("simd_sum", "simd_min", "simd_max", "simd_prefix_inclusive_sum"), "6.9.2, table 6.15"),
    "simd_prefix_exclusive_sum": "6.9.2, table 6.15",
    **dict.fromkeys(("INFINITY", "NAN"), "6.5"),
}
# Which fast math may replace by one that overflows, without precise::.
PRECISE_ALONE = {"tanh"}


def declared(text: str) -> set[str]:
    """Names that a text declares: functions, types, parameters, variables, fields and macros."""
    names = set(re.findall(r"\b(?:struct|class|enum|typename|namespace)\s+(\w+)", text))
    names |= set(re.findall(r"#\s*define\s+(\w+)", text))
    names |= set(re.findall(r"\btypedef\b[^;]*?(\w+)\s*;", text))
    names |= set(re.findall(r"\busing\s+(\w+)\s*=", text))
    # A name after a type, and those that follow it after commas.
    kind, name = r"\b(\w+)(?:\s*<[^;{}()]*?>)?(?:\s*[*&]+\s*|\s+)", r"\(?&?(\w+)\)?\s*"
    after_type = re.compile(kind + name + r"(?=[=;,){}\[:>]|\((?!&))")
    for kind, name in after_type.findall(text):
        if kind not in KEYWORDS - {"void", "const", "constexpr"}:
            names.add(name)
    names |= set(re.findall(r",\s*[*&]?(\w+)\s*(?:\[[^\]]*\]\s*)?(?==[^=]|[,;])", text))
    return names - SPECIFIED.keys() - KEYWORDS


def unspecified(text: str) -> list[str]:
    """Names in a Metal text that neither it nor the list above defines, with their lines."""
    text = re.sub(r'"[^"\n]*"', '""', source.without_comments(text))
    known, found = declared(text), []
    for match in re.finditer(r"(?<![\w.])((?:[A-Za-z_]\w*::)*)([A-Za-z_]\w*)", text):
        scope, name = match[1].removesuffix("::"), match[2]
        line = text.count("\n", 0, match.start()) + 1
        directive = re.match(r"\s*#", text.splitlines()[line - 1])
        if directive and name in ("include", "define", "pragma", "unroll", "undef", "if", "endif"):
            continue
        allowed = name in KEYWORDS or name in SPECIFIED or name in known
        if scope not in ("", "metal", "precise", "metal::precise", "mem_flags") and scope not in known:
            allowed = False
        if name in PRECISE_ALONE and not scope.endswith("precise"):
            allowed = False
        if not allowed:
            found.append(f"line {line}: {match[0]}")
    return found
