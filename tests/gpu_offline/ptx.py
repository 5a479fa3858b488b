"""Runs the PTX that Triton makes for sm_80 and sm_90, and watches for what a GPU would let pass.

All threads of a block take one step together, as numpy arrays; blocks take turns by lot at atomics and at
relaxed and acquiring loads; weak_memory.py says what they see of one another's stores. Errors: accesses
outside the tensors or misaligned; two warps that meet at one byte of shared memory, one of them writing,
with no barrier between; a release while other warps' stores are not behind a barrier; branches on which
threads disagree, but for those that leave a loop of inline assembly. It also says which barriers something
depends on: two warps that met at one byte just before and just after. Semantics and the layout of matrix
fragments: NVIDIA, "PTX ISA", version 8. Approximate instructions are as far off as it lets them be.
"""

import random
import re

import approximate
import numpy as np
import torch
from weak_memory import Buffer

TYPES = {
    **{f"b{8 * n}": np.dtype(f"u{n}") for n in (2, 4, 8)},
    **{f"u{8 * n}": np.dtype(f"u{n}") for n in (2, 4, 8)},
    **{f"s{8 * n}": np.dtype(f"i{n}") for n in (2, 4, 8)},
    **{f"f{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    "pred": np.dtype(bool),
}
TURNS = 200_000  # more than any launch here takes, unless it waits forever
WARP = 32


class Fault(Exception):
    """The program does what it must not."""


class Program:
    """Parsed PTX: instructions (predicate, negated, name, qualifiers, operands), labels, parameters."""

    def __init__(self, ptx):
        head, body = ptx.split("\n{", 1)
        self.threads = int(re.search(r"\.reqntid (\d+)", ptx)[1])
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


class Machine:
    """Memory, and blocks that share it."""

    def __init__(self, seed=0):
        self.random, self.tensors, self.end = random.Random(seed), [], 1 << 20
        self.draws = np.random.default_rng(seed)
        self.left, self.versions = 0, {}  # how many stores have left; see Buffer.leave
        self.needed = set()  # positions of barriers that keep two warps apart
        self.touched, self.early = set(), []  # tensors: of this block; and at each wait for another launch

    def put(self, tensor):
        """The address of a tensor, whose memory the programs use; nothing lies close after it."""
        start = self.end
        self.tensors.append((start, tensor.view(-1).view(torch.uint8).numpy()))
        self.end += (tensor.nbytes // 4096 + 2) * 4096
        return start

    def find(self, addresses, size):
        first, last = int(addresses.min()), int(addresses.max()) + size
        for start, data in self.tensors:
            if start <= first and last <= start + data.size:
                if (addresses % size).any():
                    raise Fault("misaligned access")
                self.touched.add(start)
                return data, addresses.astype(np.int64) - start
        raise Fault(f"access outside the tensors, at {first:#x} to {last:#x}")

    def launch(self, program, grid, arguments, shared, positions=None):
        """Run all blocks of the grid, or those at these positions."""
        self.versions = {}
        positions = np.ndindex(*grid) if positions is None else positions
        blocks = [Block(self, program, at, grid, arguments, shared).run() for at in positions]
        for _ in range(TURNS):
            if not blocks:
                return
            block = self.random.choice(blocks)
            if next(block, "over") == "over":
                blocks.remove(block)
        raise Fault("a block waits forever")


class Shared:
    """A block's shared memory, and which warp touched each byte since the last barrier."""

    def __init__(self, size):
        self.data = np.zeros(size, np.uint8)
        self.epoch = 1
        self.written, self.writer = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.read, self.reader = np.zeros(size, np.int64), np.zeros(size, np.int64)
        # Which warps wrote and read each byte, a bit for each, since the last barrier and before it.
        self.now, self.before = np.zeros((2, size), np.int64), np.zeros((2, size), np.int64)

    def barrier(self):
        """Begin anew; returns whether two warps met across the barrier before this one."""
        (wrote, read), (writes, reads) = self.before, self.now
        met = meet(wrote, writes | reads) or meet(read, writes)
        self.before, self.now = self.now, np.zeros_like(self.now)
        self.epoch += 1
        return met

    def touch(self, addresses, size, warps, write):
        """Note an access of ``size`` bytes at each address; returns every byte's index."""
        index = addresses.astype(np.int64)[:, None] + np.arange(size)
        warps = np.broadcast_to(warps[:, None], index.shape)
        if index.size and (index.min() < 0 or index.max() >= self.data.size):
            raise Fault("access outside shared memory")
        if ((self.written[index] == self.epoch) & (self.writer[index] != warps)).any():
            raise Fault("no barrier since another warp wrote this shared memory")
        np.bitwise_or.at(self.now[0 if write else 1], index, np.int64(1) << warps)
        if write:
            if ((self.read[index] == self.epoch) & (self.reader[index] != warps)).any():
                raise Fault("no barrier since another warp read this shared memory")
            self.written[index], self.writer[index] = self.epoch, warps
        else:
            several = (self.read[index] == self.epoch) & (self.reader[index] != warps)
            self.read[index], self.reader[index] = self.epoch, np.where(several, -1, warps)
        return index


def meet(some, others):
    """Whether a byte has a warp among some and another one among others, given as bits."""
    both = some | others
    return bool(((some != 0) & (others != 0) & ((both & (both - 1)) != 0)).any())


class Block:
    """One block's threads, in step."""

    def __init__(self, machine, program, position, grid, arguments, shared):
        self.machine, self.program, self.shared = machine, program, Shared(shared + 16)
        n = self.threads = program.threads
        self.warp = np.arange(n) // WARP
        self.registers = {"%tid.x": np.arange(n, dtype=np.uint32)}
        for axis, at, extent in zip("xy", position, grid, strict=True):
            self.registers[f"%ctaid.{axis}"] = np.full(n, at, np.uint32)
            self.registers[f"%nctaid.{axis}"] = np.full(n, extent, np.uint32)
        # Triton appends two pointers to scratch memory, which nothing here uses.
        values = [*arguments, 0, 0]
        for (kind, name), value in zip(program.parameters, values, strict=True):
            self.registers[f"[{name}]"] = np.full(n, value % (1 << 8 * TYPES[kind].itemsize), TYPES[kind])
        self.storing = set()  # warps with stores to global memory since the last barrier
        self.stored = set()  # and between that one and the one before it
        self.barrier = None  # where the last one stands
        self.copies = [[]]  # groups of asynchronous copies, the open one last
        self.here, self.ahead = np.ones(n, bool), {}  # threads that run; those that wait, by where they do
        self.buffer = Buffer(machine, self.threads)

    def run(self):
        """Yields where another block may take over."""
        at, self.waited, self.machine.touched = 0, False, set()
        while True:
            predicate, negated, name, qualifiers, operands, line = self.program.instructions[at]
            if at in self.ahead:
                self.here = self.here | self.ahead.pop(at)
            at += 1
            active = self.here
            if predicate:
                active = active & (self.registers[predicate] != negated)
            if name == "ret":
                self.buffer.empty()
                return self.note_barrier(None)
            if name == "bar":
                self.note_barrier(at - 1)
            if name == "bra":
                to = self.program.labels[operands[0]]
                if np.array_equal(active, self.here):
                    at = to
                elif active.any():
                    # In inline assembly some may go ahead, and wait there for the others.
                    if "@" not in operands[0] or to < at:
                        raise Fault("threads disagree on a branch")
                    self.ahead[to] = self.ahead.get(to, False) | active
                    self.here = self.here & ~active
                continue
            if name == "atom" or "acquire" in qualifiers or (name == "ld" and "relaxed" in qualifiers):
                yield
                self.buffer.turn()
            try:
                method = getattr(self, f"do_{name}", None)
                if method is not None:
                    method(qualifiers, operands, active)
                else:
                    self.write(operands[0], self.compute(name, qualifiers, operands[1:]), active)
            except Exception as error:
                error.add_note(line)
                raise

    def value(self, operand, kind):
        """An operand of every thread, as numbers of this type."""
        dtype = TYPES[kind]
        if operand in self.registers:
            found = self.registers[operand]
            if found.itemsize > dtype.itemsize:  # the lower part is meant
                found = found.astype(f"u{dtype.itemsize}")
            return found if found.dtype == dtype else found.view(dtype)
        if operand == "global_smem":
            return np.zeros(self.threads, dtype)
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
        kind = "u32" if re.match(r"%r\d|global", base) else "u64"
        return self.value(base, kind).astype(np.int64) + int(offset or 0)

    # Arithmetic.

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
        assert qualifiers[0] == "sync" and operands[3] == "31"
        lane, here = self.value(operands[2], "u32") % WARP, np.arange(self.threads)
        lanes = {"bfly": here ^ lane, "idx": here - here % WARP + lane}[qualifiers[1]]
        self.write(operands[0], self.value(operands[1], "u32")[lanes], active)

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

    # Memory.

    def do_ld(self, qualifiers, operands, active):
        kind, targets = qualifiers[-1], registers(operands[0])
        if "param" in qualifiers:
            return self.write(targets[0], widened(self.value(operands[1], kind), targets[0]), active)
        size = TYPES[kind].itemsize
        data = np.zeros((self.threads, size * len(targets)), np.uint8)
        if active.any():
            addresses = self.address(operands[1])[active]
            if "shared" in qualifiers:
                index = self.shared.touch(addresses, data.shape[1], self.warp[active], write=False)
                data[active] = self.shared.data[index]
            else:
                data[active] = self.load_global(addresses, data.shape[1], np.flatnonzero(active))
                if "acquire" in qualifiers:
                    self.buffer.acquire(slice(None))
        for target, part in zip(targets, data.view(TYPES[kind]).T, strict=True):
            self.write(target, widened(np.ascontiguousarray(part), target), active)

    def do_st(self, qualifiers, operands, active):
        if not active.any():
            return
        parts = [self.value(r, qualifiers[-1])[active] for r in registers(operands[1])]
        data = np.stack(parts, 1).view(np.uint8)
        addresses, warps = self.address(operands[0])[active], self.warp[active]
        if "shared" in qualifiers:
            self.shared.data[self.shared.touch(addresses, data.shape[1], warps, write=True)] = data
            return
        memory, offsets = self.machine.find(addresses, data.shape[1])
        self.storing |= set(warps)
        # Each number of a vector makes its own way.
        size = TYPES[qualifiers[-1]].itemsize
        index = (offsets[:, None] + np.arange(data.shape[1])).reshape(-1, size)
        threads = np.repeat(np.flatnonzero(active), len(parts))
        self.buffer.store(
            memory, index, data.reshape(-1, size), threads, self.shared.epoch, "relaxed" in qualifiers
        )

    def load_global(self, addresses, size, threads):
        """From one tensor, or each thread from one of several."""
        starts = np.array([start for start, _ in self.machine.tensors])
        among = np.searchsorted(starts, addresses, side="right")
        data = np.empty((len(addresses), size), np.uint8)
        for tensor in np.unique(among):
            some = among == tensor
            memory, offsets = self.machine.find(addresses[some], size)
            data[some] = self.buffer.load(memory, offsets[:, None] + np.arange(size), threads[some])
        return data

    def do_fence(self, qualifiers, operands, active):
        """It takes along what its own thread stored, and what all stored before a barrier."""
        assert qualifiers == ["acq_rel", "gpu"]
        self.buffer.empty(active, self.shared.epoch)
        self.buffer.acquire(active)

    def do_ldmatrix(self, qualifiers, operands, active):
        targets = registers(operands[0])
        lanes = np.arange(self.threads) % WARP < 8 * len(targets)
        index = self.shared.touch(self.address(operands[1])[lanes], 16, self.warp[lanes], write=False)
        rows = self.shared.data[index].view(np.uint16).reshape(-1, len(targets), 8, 8)
        if "trans" in qualifiers:
            rows = rows.swapaxes(2, 3)
        pairs = np.ascontiguousarray(rows).view(np.uint32).reshape(-1, len(targets), WARP)
        for n, target in enumerate(targets):
            self.write(target, pairs[:, n].reshape(-1), active)

    def do_stmatrix(self, qualifiers, operands, active):
        sources = registers(operands[1])
        assert "trans" not in qualifiers
        lanes = np.arange(self.threads) % WARP < 8 * len(sources)
        words = np.stack([self.value(r, "u32").reshape(-1, WARP) for r in sources], 1)
        index = self.shared.touch(self.address(operands[0])[lanes], 16, self.warp[lanes], write=True)
        self.shared.data[index] = words.view(np.uint8).reshape(-1, 16)

    def do_cp(self, qualifiers, operands, active):
        """Asynchronous copies arrive when they are waited for, not before."""
        if "commit_group" in qualifiers:
            self.copies.append([])
        elif "wait_group" in qualifiers:
            while len(self.copies) > int(operands[0], 0) + 1:
                for index, data, warps in self.copies.pop(0):
                    self.shared.touch(index[:, 0], index.shape[1], warps, write=True)
                    self.shared.data[index] = data
        elif active.any():
            size = int(operands[2], 0)
            taken = (
                self.value(operands[3], "u32")[active] if len(operands) > 3 else np.full(active.sum(), size)
            )
            data = np.zeros((active.sum(), size), np.uint8)
            if (taken > 0).any():
                threads = np.flatnonzero(active)[taken > 0]
                data[taken > 0] = self.load_global(self.address(operands[1])[threads], size, threads)
            index = self.shared.touch(self.address(operands[0])[active], size, self.warp[active], write=True)
            self.copies[-1].append((index, data, self.warp[active]))

    def do_bar(self, qualifiers, operands, active):
        self.stored, self.storing = self.storing, set()

    def note_barrier(self, position):
        if self.shared.barrier():
            self.machine.needed.add(self.barrier)
        self.barrier = position

    def do_atom(self, qualifiers, operands, active):
        assert qualifiers[-2:] == ["add", "u32"]
        for thread in np.flatnonzero(active):
            if {"release", "acq_rel"} & set(qualifiers) and self.storing - {self.warp[thread]}:
                raise Fault("a release with stores of other warps before it and no barrier between")
            if {"release", "acq_rel"} & set(qualifiers) and self.stored - {self.warp[thread]}:
                self.machine.needed.add(self.barrier)
            if {"release", "acq_rel"} & set(qualifiers):
                self.buffer.empty()
            memory, offset = self.machine.find(self.address(operands[1])[thread : thread + 1], 4)
            cell = memory[offset[0] : offset[0] + 4].view(np.uint32)
            before = cell.copy()
            cell += self.value(operands[2], "u32")[thread]
            if {"acquire", "acq_rel"} & set(qualifiers):
                self.buffer.acquire(slice(None))
            self.write(operands[0], np.repeat(before, self.threads), np.arange(self.threads) == thread)

    def do_griddepcontrol(self, qualifiers, operands, active):
        """Notes what the launch before may still be writing, and that the next one may begin."""
        if qualifiers == ["wait"]:
            self.waited = True
            self.machine.early.append(set(self.machine.touched))
        elif not self.waited:
            raise Fault("the next launch may begin while the one before the one before this is running")


def registers(operand):
    """The registers of a vector operand."""
    return operand.strip("{} ").replace(" ", "").split(",")


def widened(value, register):
    """What a load leaves in a register, which may be wider than what was loaded."""
    wide = register.startswith("%rd") and value.itemsize < 8
    return value.astype(f"{value.dtype.kind}8") if wide else value


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
