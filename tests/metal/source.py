"""Reads the text of Metal kernels: their signatures and their threadgroup variables."""

import re
from dataclasses import dataclass

# Fields of `Thread` in runtime.h, by attribute.
ATTRIBUTES = {
    "thread_position_in_grid": "position_in_grid[0]",
    "thread_position_in_threadgroup": "position_in_group[0]",
    "thread_index_in_threadgroup": "index",
    "thread_index_in_simdgroup": "lane",
    "simdgroup_index_in_threadgroup": "simdgroup",
    "simdgroups_per_threadgroup": "simdgroups",
    "threadgroup_position_in_grid": "group_position[0]",
    "threadgroups_per_grid": "groups[0]",
    "threads_per_grid": "grid[0]",
    "threads_per_threadgroup": "group_size[0]",
    "dispatch_threads_per_threadgroup": "dispatch_group_size[0]",
}
ATTRIBUTE = re.compile(r"\[\[(?:[^\]]|\](?!\]))*\]\]")
KERNEL_ATTRIBUTE = re.compile(r"\[\[\s*kernel\s*\]\]")
OPEN, CLOSE = "([{<", ")]}>"


class MetalError(SyntaxError):
    """What Metal's compiler, or its calling convention, would refuse."""


@dataclass
class Kernel:
    name: str  # by which Python calls it
    function: str  # in C++, with template arguments
    bindings: list[int | str]  # of each parameter: number of its buffer, or attribute
    max_threads: int = 1024


def without_comments(text: str) -> str:
    """Replace comments by spaces."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.DOTALL)


def closing(text: str, start: int) -> int:
    """Position of the bracket that closes the one at `start`."""
    opening, depth = text[start], 0
    close = CLOSE[OPEN.index(opening)]
    for position in range(start, len(text)):
        depth += (text[position] == opening) - (text[position] == close)
        if depth == 0:
            return position
    raise MetalError(f"unbalanced {opening} in line {text.count(chr(10), 0, start) + 1}")


def split(text: str) -> list[str]:
    """Split at the commas outside all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in OPEN) - (character in CLOSE)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def bindings(name: str, parameters: str) -> list[int | str]:
    """What each parameter of a kernel is bound to."""
    found: list[int | str] = []
    free = 0
    for parameter in split(parameters):
        attributes = re.findall(r"\[\[\s*(\w+)\s*(?:\(\s*(\w+)\s*\))?\s*\]\]", parameter)
        known = [a for a, _ in attributes if a in ATTRIBUTES]
        numbers = [int(n) for a, n in attributes if a == "buffer"]
        if known:
            found.append(known[0])
        elif numbers or (re.search(r"[*&]", parameter) and not attributes):
            found.append(numbers[0] if numbers else free)
            free = max(free, int(found[-1]) + 1)
        else:
            raise MetalError(f"kernel {name}: no known attribute in {' '.join(parameter.split())}")
    numbers = [b for b in found if isinstance(b, int)]
    if len(set(numbers)) < len(numbers) or max(numbers, default=0) > 30:
        raise MetalError(f"kernel {name}: buffers {numbers}, of which there are 0 to 30, once each")
    return found


def template_name(text: str) -> str:
    """`name<arguments>` at the start of the text."""
    name = re.match(r"\s*(\w+)\s*", text)
    if text[name.end() : name.end() + 1] != "<":
        return name[1]
    return name[1] + text[name.end() : closing(text, name.end()) + 1]


def kernels(text: str) -> list[Kernel]:
    """All kernels that Python can call, of preprocessed text."""
    text = KERNEL_ATTRIBUTE.sub(lambda match: "kernel".center(len(match[0])), text)
    found, templates = [], {}
    attributes = rf"(?:{ATTRIBUTE.pattern}\s*)*"
    start = re.compile(rf"(template\s*)?{attributes}\bkernel\b\s*{attributes}")
    for match in start.finditer(text):
        rest = text[match.end() :]
        if declared := re.match(r"decltype\s*(?=\()", rest):
            rest = rest[closing(rest, declared.end()) + 1 :]
        elif re.match(r"void\b", rest):
            rest = rest[4:]
        else:
            raise MetalError(f"a kernel returns void: {rest[:40]!r}")
        function = template_name(rest)
        plain = re.match(r"\w+", function)[0]
        if host := re.search(r"host_name\s*\(\s*((?:\"[^\"]*\"\s*)+)\)", match[0]):
            name = "".join(re.findall(r'"([^"]*)"', host[1]))
        else:
            name = plain
        limit = re.search(r"max_total_threads_per_threadgroup\s*\((.*?)\)\s*\]\]", match[0])
        if limit and not re.fullmatch(r"[\d\s*+/()-]+", limit[1]):
            raise MetalError(f"{name}: a number of threads that cannot be read: {limit[1]}")
        threads = eval(limit[1]) if limit else 1024  # digits and operators
        if match[1]:  # an explicit instantiation
            if plain not in templates:
                raise MetalError(f"{name}: no template {plain} before its instantiation")
            found.append(Kernel(name, function, templates[plain][0], min(threads, templates[plain][1])))
            continue
        opening = rest.index("(")
        bound = bindings(name, rest[opening + 1 : closing(rest, opening)])
        before = text[: match.start()].rstrip()
        if before.endswith(">"):
            templates[plain] = bound, threads
        else:
            found.append(Kernel(name, function, bound, threads))
    names = [kernel.name for kernel in found]
    if len(set(names)) < len(names):
        raise MetalError(f"two kernels of one name: {sorted(names)}")
    return found


def bodies(text: str) -> list[tuple[int, int]]:
    """Where the bodies of the kernels are."""
    found = []
    for match in re.finditer(r"\bkernel\b[^;{]*\{", text):
        found.append((match.end(), closing(text, match.end() - 1)))
    return found


def share(text: str) -> str:
    """Have each threadgroup variable refer to memory that all threads of the threadgroup share."""
    inside = bodies(text)
    declaration = re.compile(
        r"(?<=[;{}])(\s*)((?:alignas\s*\(\s*\w+\s*\)\s*)?)\bthreadgroup\s+([\w:]+(?:\s*<[^;{}>]*>)?)\s+(\w[^;&=]*);"
    )
    sites = iter(range(10**6))

    def shared(match: re.Match) -> str:
        if not any(begin <= match.start(3) < end for begin, end in inside):
            line = text.count("\n", 0, match.start(3)) + 1
            raise MetalError(f"line {line}: a threadgroup variable outside of a kernel's body")
        variables = []
        for declarator in split(match[4]):
            name, dimensions = re.match(r"\s*(\w+)\s*(.*)", declarator, re.DOTALL).groups()
            kind = f"threadgroup {match[3]}{' '.join(dimensions.split())}"
            variables.append(f"auto& {name} = emulation::shared<{kind}, {next(sites)}>();")
        return match[1] + " ".join(variables) + "\n" * match[0].count("\n", len(match[1]))

    text = declaration.sub(shared, text)
    if left := re.search(r"[;{}]\s*threadgroup\s+[\w:]+\s+\w+\s*[\[;,=]", text):
        raise MetalError(f"a threadgroup variable that cannot be read: {left[0]!r}")
    return text
