"""Parses PTX."""

import re

import numpy as np

TYPES = {
    **{f"b{8 * n}": np.dtype(f"u{n}") for n in (2, 4, 8)},
    **{f"u{8 * n}": np.dtype(f"u{n}") for n in (2, 4, 8)},
    **{f"s{8 * n}": np.dtype(f"i{n}") for n in (2, 4, 8)},
    **{f"f{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    "pred": np.dtype(bool),
}


class Fault(Exception):
    """The program does what it must not."""


class Program:
    """Parsed PTX: instructions (predicate, negated, name, qualifiers, operands), labels, parameters."""

    def __init__(self, ptx):
        head, body = ptx.split("\n{", 1)
        self.threads = int(re.search(r"\.reqntid (\d+)", ptx)[1])
        cluster = re.search(r"\.reqnctapercluster (\d+)", ptx)
        self.cluster = int(cluster[1]) if cluster else 1
        # Shared memory that inline assembly declares.
        self.variables, self.declared = {}, 0
        for align, name, size in re.findall(r"^\s*\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]", body, re.M):
            self.variables[name] = self.declared = -(-self.declared // int(align)) * int(align)
            self.declared += int(size)
        self.parameters = re.findall(r"\.param \.(u\d+).*?(\w+_param_\d+)", head)
        self.instructions, self.labels = [], {}
        blocks = 0  # of inline assembly, whose labels are its own
        for line in body.splitlines():
            line = line.split("//")[0].strip()
            blocks += line == "{"
            # An instruction with its own register.
            line = re.sub(r"^\{ \.reg \.b32 \w+; (.*) \}$", r"\1", line)
            for statement in re.split(r";\s*", line):
                self.read(statement, f"@{blocks}")

    def read(self, line, block):
        if label := re.fullmatch(r"(\$?\w+):", line):
            name = label[1] if label[1][0] == "$" else label[1] + block
            self.labels[name] = len(self.instructions)
        elif found := re.fullmatch(r"(?:@(!?)(%p\d+|\w+)\s+)?([a-z][\w.:]*)\s*(.*)", line):
            name, *qualifiers = found[3].replace("::cta", "").split(".")
            operands = re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", found[4])
            if name == "bra" and operands[0][0] != "$":
                operands[0] += block
            self.instructions.append((found[2], bool(found[1]), name, qualifiers, operands, line))
        elif line and line[0] != "." and line not in "{}":
            raise NotImplementedError(line)


def registers(operand):
    """The registers of a vector operand."""
    return operand.strip("{} ").replace(" ", "").split(",")
