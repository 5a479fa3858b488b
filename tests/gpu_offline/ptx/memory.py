"""The instructions that access memory: loads, stores, asynchronous copies, atomics, fences."""

import numpy as np

from .arithmetic import WARP, Arithmetic
from .program import TYPES, Fault, registers
from .shared_memory import Shared
from .weak_memory import Buffer


class Memory(Arithmetic):
    """The memory that a block sees: its shared memory and, through its store buffer, the tensors."""

    def __init__(self, machine, threads, shared):
        super().__init__(threads)
        self.machine, self.shared = machine, Shared(shared + 16)
        self.buffer = Buffer(machine, threads)
        self.storing = set()  # warps with stores to global memory since the last barrier
        self.stored = set()  # and between that one and the one before it
        self.barrier = None  # the position of the last one
        self.copies = [[]]  # groups of asynchronous copies, the open one last

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
            if operands[0] is not None:
                self.write(operands[0], np.repeat(before, self.threads), np.arange(self.threads) == thread)

    def do_red(self, qualifiers, operands, active):
        """An atomic addition whose old value nobody reads, which Triton 3.9 makes of an unused one."""
        self.do_atom(qualifiers, [None, *operands], active)

    def do_bar(self, qualifiers, operands, active):
        self.stored, self.storing = self.storing, set()

    def note_barrier(self, position):
        if self.shared.barrier():
            self.machine.needed.add(self.barrier)
        self.barrier = position


def widened(value, register):
    """What a load leaves in a register, which may be wider than what was loaded."""
    wide = register.startswith("%rd") and value.itemsize < 8
    return value.astype(f"{value.dtype.kind}8") if wide else value
