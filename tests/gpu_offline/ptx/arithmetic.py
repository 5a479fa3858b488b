"""Registers and the instructions that compute, for all threads of a block at once."""

import re

import approximate
import numpy as np
import torch

from .program import TYPES, Fault, registers

WARP = 32


class Arithmetic:
    """The registers of a block's threads, and what computes with them."""

    def __init__(self, threads):
        self.threads = threads
        self.warp = np.arange(threads) // WARP
        self.registers = {"%tid.x": np.arange(threads, dtype=np.uint32)}
        self.places = {"global_smem": 0}  # addresses in shared memory

    def value(self, operand, kind):
        """An operand of every thread, as numbers of this type."""
        dtype = TYPES[kind]
        if operand in self.registers:
            found = self.registers[operand]
            if found.itemsize > dtype.itemsize:  # the lower part is meant
                found = found.astype(f"u{dtype.itemsize}")
            return found if found.dtype == dtype else found.view(dtype)
        if operand in self.places:
            return np.full(self.threads, self.places[operand], dtype)
        if operand[:2] in ("0f", "0d"):
            return np.full(self.threads, int(operand[2:], 16), f"u{dtype.itemsize}").view(dtype)
        number = int(operand, 0)
        if kind == "pred":
            return np.full(self.threads, bool(number))
        return np.full(self.threads, number % (1 << 8 * dtype.itemsize), f"u{dtype.itemsize}").view(dtype)

    def write(self, register, value, active):
        if value.dtype != bool:
            value = value.view(f"u{value.dtype.itemsize}")
        if not active.all():
            value = np.where(active, value, self.registers.get(register, np.zeros_like(value)))
        self.registers[register] = value

    def address(self, operand):
        base, offset = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand).groups()
        kind = "u32" if re.match(r"%r\d", base) or base in self.places else "u64"
        return self.value(base, kind).astype(np.int64) + int(offset or 0)

    def compute(self, name, qualifiers, operands):
        with np.errstate(all="ignore"):
            if name == "cvt" and qualifiers[-2].endswith("x2"):  # the first goes to the upper half
                halves = [self.convert(qualifiers[-2][:-2], qualifiers[-1], o) for o in operands[::-1]]
                return np.stack([half.view(np.uint16) for half in halves], 1).view(np.uint32)[:, 0]
            if name == "cvt":
                return self.convert(*qualifiers[-2:], operands[0])
            if name == "setp":
                x, y = (self.value(o, qualifiers[-1]) for o in operands)
                return COMPARISONS[qualifiers[0]](x, y)
            if name == "selp":
                x, y = (self.value(o, qualifiers[-1]) for o in operands[:2])
                return np.where(self.value(operands[2], "pred"), x, y)
            if name in ("shl", "shr"):
                x, count = self.value(operands[0], qualifiers[-1]), self.value(operands[1], "u32")
                kept = (np.left_shift if name == "shl" else np.right_shift)(x, count.astype(x.dtype))
                return np.where(count < 8 * x.itemsize, kept, 0).astype(x.dtype)
            if qualifiers[-1] == "u16x2":
                halves = [self.value(o, "u32").view(np.uint16) for o in operands]
                return ARITHMETIC[name](*halves).view(np.uint32)
            values = [self.value(o, qualifiers[-1]) for o in operands]
            if "wide" in qualifiers:
                wide = f"{values[0].dtype.kind}{2 * values[0].itemsize}"
                values[:2] = (v.astype(wide) for v in values[:2])
                values[2:] = (
                    self.value(o, f"u{8 * np.dtype(wide).itemsize}").view(wide) for o in operands[2:]
                )
            if "hi" in qualifiers:  # the upper half of a product
                assert name == "mul"
                whole = values[0].astype(object) * values[1].astype(object)
                return (whole >> 8 * values[0].itemsize).astype(values[0].dtype)
            if name == "fma":
                return sum_of_product(*values)
            inexact = {"approx", "full"} & set(qualifiers) and values[0].dtype == np.float32
            return (APPROXIMATE if inexact else ARITHMETIC)[name](*values)

    def convert(self, to, kind, operand):
        if kind == "bf16":
            return (self.value(operand, "u16").astype(np.uint32) << 16).view(np.float32)
        value = self.value(operand, kind)
        if to == "bf16":
            return torch.from_numpy(value.copy()).bfloat16().view(torch.int16).numpy()
        return value.astype(TYPES[to])

    def do_mov(self, qualifiers, operands, active):
        """Also takes a register apart into smaller ones, or puts it together."""
        target, source = operands
        if target.startswith("{"):
            parts = registers(target)
            whole = self.value(source, qualifiers[-1])
            pieces = np.ascontiguousarray(whole)[:, None].view(f"u{whole.itemsize // len(parts)}")
            for n, part in enumerate(parts):
                self.write(part, np.ascontiguousarray(pieces[:, n]), active)
        elif source.startswith("{"):
            kind = f"u{TYPES[qualifiers[-1]].itemsize * 8 // len(registers(source))}"
            pieces = np.stack([self.value(r, kind) for r in registers(source)], 1)
            self.write(target, pieces.view(TYPES[qualifiers[-1]])[:, 0], active)
        else:
            self.write(target, self.value(source, qualifiers[-1]), active)

    def do_bfe(self, qualifiers, operands, active):
        value = self.value(operands[1], qualifiers[-1])
        first, width = int(operands[2], 0), int(operands[3], 0)
        self.write(operands[0], value << (32 - first - width) >> (32 - width), active)

    def do_shfl(self, qualifiers, operands, active):
        """A register of another lane of the warp; of its own where that one is out of range."""
        assert qualifiers[0] == "sync"
        target, _, predicate = operands[0].partition("|")
        offset, bounds, members = (self.value(o, "u32").astype(np.int64) for o in operands[2:])
        lane, offset = np.arange(self.threads) % WARP, offset % WARP
        within = bounds >> 8 & 31  # bits of the lane that no source may differ in
        first = lane & within
        last = first | bounds & 31 & ~within
        source = {
            **{"up": lane - offset, "down": lane + offset, "bfly": lane ^ offset},
            "idx": first | offset & ~within,
        }[qualifiers[1]]
        in_range = source >= last if qualifiers[1] == "up" else source <= last
        source = np.arange(self.threads) - lane + np.where(in_range, source, lane)
        running = np.repeat(active.reshape(-1, WARP).any(1), WARP)  # warps
        if ((members >> lane & 1 == 1) != active)[running].any():
            raise Fault("a shuffle by other threads than those that it names")
        if not active[source[active]].all():
            raise Fault("a shuffle from a thread that takes no part")
        self.write(target, self.value(operands[1], "u32")[source], active)
        if predicate:
            self.write(predicate, in_range, active)

    def do_mma(self, qualifiers, operands, active):
        """D = A B + C with A [16, K] by rows, B [K, 8] by columns, in fragments of four rows of registers."""
        group, lane = np.arange(WARP) // 4, np.arange(WARP) % 4
        if qualifiers[-1] == "f64":
            return self.multiply_doubles(operands, group, lane)
        a, b, c = ([self.value(r, "u32").reshape(-1, WARP) for r in registers(o)] for o in operands[1:])
        pack = {"tf32": 1, "f16": 2, "bf16": 2}[qualifiers[-2]]
        A, B, C = (np.zeros((len(a[0]), *shape)) for shape in ((16, 8 * pack), (8 * pack, 8), (16, 8)))
        for n, fragment in enumerate(a):
            for half, part in enumerate(unpack(fragment, qualifiers[-2])):
                A[:, group + 8 * (n % 2), pack * lane + half + 4 * pack * (n // 2)] = part
        for n, fragment in enumerate(b):
            for half, part in enumerate(unpack(fragment, qualifiers[-2])):
                B[:, pack * lane + half + 4 * pack * n, group] = part
        for n, fragment in enumerate(c):
            C[:, group + 8 * (n // 2), 2 * lane + n % 2] = fragment.view(np.float32)
        D = (A @ B + C).astype(np.float32)
        for n, register in enumerate(registers(operands[0])):
            self.write(register, D[:, group + 8 * (n // 2), 2 * lane + n % 2].reshape(-1), active)

    def multiply_doubles(self, operands, group, lane):
        """The same with A [8 or 16, K] and B [K, 8], where K is 4 for each register of B."""
        a, b, c = ([self.value(r, "f64").reshape(-1, WARP) for r in registers(o)] for o in operands[1:])
        tall = len(c) // 2
        A, B, C = (
            np.zeros((len(a[0]), *s)) for s in ((8 * tall, 4 * len(b)), (4 * len(b), 8), (8 * tall, 8))
        )
        for n, fragment in enumerate(a):
            A[:, group + 8 * (n % tall), lane + 4 * (n // tall)] = fragment
        for n, fragment in enumerate(b):
            B[:, lane + 4 * n, group] = fragment
        for n, fragment in enumerate(c):
            C[:, group + 8 * (n // 2), 2 * lane + n % 2] = fragment
        D = A @ B + C
        for n, register in enumerate(registers(operands[0])):
            D_n = D[:, group + 8 * (n // 2), 2 * lane + n % 2]
            self.write(register, D_n.reshape(-1), np.ones(self.threads, bool))


def unpack(fragment, kind):
    """The one or two numbers that each register of a matrix fragment holds."""
    if kind == "tf32":  # of whose 32 bits a tensor core reads the upper 19
        return [(fragment & np.uint32(0xFFFFE000)).view(np.float32)]
    if kind == "bf16":
        return [(fragment << 16).view(np.float32), (fragment & np.uint32(0xFFFF0000)).view(np.float32)]
    return np.moveaxis(np.ascontiguousarray(fragment)[..., None].view(np.float16), -1, 0)


def sum_of_product(x, y, z):
    """Rounded once: a product of two float32 numbers is exact in float64; in float64 almost once."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    return (x.astype(wide) * y + z).astype(x.dtype)


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "geu": lambda x, y: ~np.less(x, y),  # or one is NaN
}
ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "mad": lambda x, y, z: x * y + z,
    "div": np.divide,
    "neg": lambda x: -x if x.dtype.kind == "f" else np.zeros_like(x) - x,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "min": np.minimum,
    "max": np.maximum,
}
APPROXIMATE = {"ex2": approximate.ex2, "div": approximate.divide, "sqrt": approximate.sqrt}
