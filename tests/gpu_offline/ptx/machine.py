"""Global memory, and blocks that run by turns."""

import random

import numpy as np
import torch

from .distributed import ARRIVES, Distributed
from .program import TYPES, Fault

TURNS = 200_000  # more than any launch here takes, unless it waits forever


class Machine:
    """Memory, and blocks that share it."""

    def __init__(self, seed=0):
        self.random, self.tensors, self.end = random.Random(seed), [], 1 << 20
        self.draws = np.random.default_rng(seed)
        self.left, self.versions = 0, {}  # how many stores have left; see Buffer.leave
        self.needed = set()  # positions of barriers that keep two warps apart
        self.cluster, self.under_way = 1, []  # blocks of a cluster; stores from one block to another
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
        """Run all programs of the grid, or those at these positions; a program is a block, or a cluster."""
        self.versions, self.cluster = {}, program.cluster
        blocks = []
        for at in np.ndindex(*grid) if positions is None else positions:
            cluster = []
            for rank in range(program.cluster):
                cluster.append(Block(self, program, at, grid, arguments, shared, cluster, rank))
            blocks += [block.run() for block in cluster]
        for _ in range(TURNS):
            self.deliver(everything=not blocks)
            if not blocks:
                return
            block = self.random.choice(blocks)
            if next(block, "over") == "over":
                blocks.remove(block)
        raise Fault("a block waits forever")

    def deliver(self, everything):
        """Stores from one block to another arrive, some of them or all."""
        under_way, self.under_way = self.under_way, []
        for block, *store in under_way:
            if everything or self.draws.random() < ARRIVES:
                block.receive(*store)
            else:
                self.under_way.append((block, *store))


class Block(Distributed):
    """One block, whose threads execute together."""

    def __init__(self, machine, program, position, grid, arguments, shared, cluster, rank):
        start = -(-(shared + 16) // 16) * 16  # of what inline assembly declares
        super().__init__(machine, program.threads, start + program.declared, cluster, rank)
        self.places |= {name: start + offset for name, offset in program.variables.items()}
        self.program, n = program, program.threads
        for axis, at, extent in zip("xy", position, grid, strict=True):
            name = "clusterid" if program.cluster > 1 else "ctaid"
            self.registers[f"%{name}.{axis}"] = np.full(n, at, np.uint32)
            self.registers[f"%nctaid.{axis}"] = np.full(n, extent, np.uint32)
        # Triton appends two pointers to scratch memory, which nothing here uses.
        values = [*arguments, 0, 0]
        for (kind, name), value in zip(program.parameters, values, strict=True):
            self.registers[f"[{name}]"] = np.full(n, value % (1 << 8 * TYPES[kind].itemsize), TYPES[kind])
        # Threads that run; and those that wait for the others, by where they do.
        self.here, self.ahead = np.ones(n, bool), {}

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
                self.ended = True
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
            while name == "barrier" and "wait" in qualifiers and not self.met():
                yield
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

    def do_griddepcontrol(self, qualifiers, operands, active):
        """Notes what the launch before may still be writing, and that the next one may begin."""
        if qualifiers == ["wait"]:
            self.waited = True
            self.machine.early.append(set(self.machine.touched))
        elif not self.waited:
            raise Fault("the next launch may begin while the one before the one before this is running")
