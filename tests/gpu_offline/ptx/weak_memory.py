"""The PTX machine's memory model: blocks see no more of one another's stores than PTX guarantees.

A store waits in its block's store buffer: some drain soon, in any order, others only at a fence or a release.
A load may return the value before the last store that drained, until its thread fences or its block acquires.
"""

import numpy as np

OLD = 0.2  # the probability that a load returns the older value, if it may
SOON = 4  # turns of a block in which stores that drain by themselves do so


class Buffer:
    """A block's store buffer, which the block itself reads through, and what it has seen of other stores."""

    def __init__(self, machine, threads):
        self.machine, self.turns, self.stores = machine, 0, 0
        self.fenced = np.zeros(threads, np.int32)  # by thread: stores drained before its last fence
        self.known = {}  # by tensor: the version of each byte that the block has seen
        self.own = {}  # by tensor: bytes as the block sees them, and the stores they are from
        self.soon = {}  # stores that drain by themselves, by turn
        self.held = []  # stores that do not

    def store(self, memory, index, data, threads, epoch, relaxed):
        """Buffer a store; relaxed ones drain soon."""
        if id(memory) not in self.own:
            self.own[id(memory)] = np.zeros(memory.size, np.uint8), *np.zeros((2, memory.size), np.int32)
        seen, stored, _ = self.own[id(memory)]
        self.stores += 1
        seen[index], stored[index] = data, self.stores
        # Each on its own, or all at once.
        draws = self.machine.draws
        wait = draws.integers(0, SOON if relaxed else 2 * SOON, len(index) if draws.random() < 0.5 else 1)
        wait = np.broadcast_to(wait, len(index))
        for turns in np.unique(wait):
            some = wait == turns
            entry = memory, index[some], data[some], threads[some], epoch, self.stores
            if turns == 0:
                self.leave(entry)
            elif turns < SOON:
                self.soon.setdefault(self.turns + turns, []).append(entry)
            else:
                self.held.append(entry)

    def load(self, memory, index, threads):
        data = memory[index]
        if id(memory) in self.machine.versions:
            before, version = self.machine.versions[id(memory)]
            known = self.known.setdefault(id(memory), np.zeros(memory.size, np.int32))
            new = (version[index] > self.fenced[threads][:, None]) & (version[index] > known[index])
            old = new & (self.machine.draws.random(len(index)) < OLD)[:, None]
            data = np.where(old, before[index], data)
            known[index[~old]] = version[index[~old]]
        if id(memory) in self.own:
            seen, stored, left = self.own[id(memory)]
            data = np.where(stored[index] > left[index], seen[index], data)
        return data

    def leave(self, entry):
        """Drain a store to memory, except bytes to which a later store has drained."""
        memory, index, data, _, _, number = entry
        left = self.own[id(memory)][2]
        newest = left[index] < number
        index, data = index[newest], data[newest]
        if id(memory) not in self.machine.versions:
            self.machine.versions[id(memory)] = (
                np.zeros(memory.size, np.uint8),
                np.zeros(memory.size, np.int32),
            )
        before, version = self.machine.versions[id(memory)]
        self.machine.left += 1
        before[index], version[index] = memory[index], self.machine.left
        self.known.setdefault(id(memory), np.zeros(memory.size, np.int32))[index] = self.machine.left
        memory[index], left[index] = data, number

    def acquire(self, threads):
        """From now on these threads see all stores that have drained."""
        self.fenced[threads] = self.machine.left

    def turn(self):
        self.turns += 1
        for entry in self.soon.pop(self.turns, ()):
            self.leave(entry)

    def empty(self, threads=None, epoch=None):
        """Drain all stores, or those of these threads and those from before this epoch."""
        waiting = [(None, entry) for entry in self.held]
        waiting += [(turn, entry) for turn, entries in self.soon.items() for entry in entries]
        self.held, self.soon = [], {}
        for turn, entry in waiting:
            memory, index, data, by, when, number = entry
            if threads is None or when < epoch or threads[by].all():
                self.leave(entry)
                continue
            goes, stays = threads[by], ~threads[by]
            self.leave((memory, index[goes], data[goes], by[goes], when, number))
            kept = memory, index[stays], data[stays], by[stays], when, number
            (self.held if turn is None else self.soon.setdefault(turn, [])).append(kept)
