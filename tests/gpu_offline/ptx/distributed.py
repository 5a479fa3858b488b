"""Distributed shared memory: the blocks of a cluster, their barriers, and the stores between them.

A store to another block is under way for some turns, each warp's to each block on its own. It arrives
together with the bytes that it counts on the receiver's barrier (an mbarrier). What has arrived may be read
once a wait for the phase has ended in which it was counted.
"""

import numpy as np

from .memory import Memory
from .program import Fault, registers

WINDOW = 24  # bits of an address within a block; above them stands the block's rank in its cluster, from 1
ARRIVES = 0.1  # the probability that a store arrives in a turn


class Barrier:
    """An mbarrier: arrivals and bytes that its phase still waits for, and what has arrived in it."""

    def __init__(self, count):
        self.count = self.pending = count
        self.bytes, self.phase = 0, 0
        self.arrived, self.complete = [], []

    def change(self, arrivals, size):
        self.pending -= arrivals
        self.bytes += size
        if self.pending < 0:
            raise Fault("more arrivals at an mbarrier than it counts")
        if self.pending == self.bytes == 0:
            self.phase, self.pending = self.phase ^ 1, self.count
            self.complete, self.arrived = self.complete + self.arrived, []


class Distributed(Memory):
    """The memory of a block in a cluster; ``cluster`` holds all of its blocks."""

    def __init__(self, machine, threads, shared, cluster, rank):
        super().__init__(machine, threads, shared)
        self.cluster, self.rank, self.ended, self.arrivals = cluster, rank, False, 0
        self.fresh, self.barriers = {}, {}  # by address: those that no fence has published yet, and others
        for register, value in (("%cluster_ctarank", rank), ("%cluster_nctarank", machine.cluster)):
            self.registers[register] = np.full(threads, value, np.uint32)

    def do_mapa(self, qualifiers, operands, active):
        local, rank = (self.value(o, "u32") for o in operands[1:])
        self.write(operands[0], (rank + 1 << WINDOW | local).astype(np.uint32), active)

    def do_barrier(self, qualifiers, operands, active):
        assert qualifiers[0] == "cluster", qualifiers
        self.arrivals += qualifiers[1] == "arrive"

    def met(self):
        """Whether all blocks have arrived at the cluster's barrier as often as this one."""
        return all(block.arrivals >= self.arrivals for block in self.cluster)

    def do_fence(self, qualifiers, operands, active):
        if qualifiers == ["mbarrier_init", "release", "cluster"]:
            self.barriers |= self.fresh
        else:
            super().do_fence(qualifiers, operands, active)

    def do_mbarrier(self, qualifiers, operands, active):
        action = qualifiers[0]
        at = operands[0] if action == "init" else operands[1]
        for thread in np.flatnonzero(active):
            place = int(self.address(at)[thread])
            if action == "init":
                self.fresh[place] = Barrier(int(self.value(operands[1], "u32")[thread]))
            elif action == "arrive":
                assert qualifiers[1] == "expect_tx"
                self.barrier_at(place).change(1, int(self.value(operands[2], "u32")[thread]))
        if action == "try_wait":
            assert qualifiers[1] == "parity"
            barrier = self.barrier_at(place)
            over = barrier.phase != int(self.value(operands[2], "u32")[thread])
            if over:
                for index in barrier.complete:
                    self.shared.unseen[index] = False
                barrier.complete = []
            self.write(operands[0], np.full(self.threads, over), active)

    def barrier_at(self, place):
        if place not in self.barriers:
            raise Fault("no mbarrier has been set up there")
        return self.barriers[place]

    def do_st(self, qualifiers, operands, active):
        if "async" not in qualifiers:
            return super().do_st(qualifiers, operands, active)
        data = np.stack([self.value(r, "b32") for r in registers(operands[1])], 1).view(np.uint8)
        at, barrier = self.address(operands[0]), self.address(operands[2])
        if (at >> WINDOW != barrier >> WINDOW).any():
            raise Fault("a store counts on the barrier of another block")
        for warp in np.unique(self.warp[active]):
            for rank in np.unique(at[active & (self.warp == warp)] >> WINDOW):
                some = active & (self.warp == warp) & (at >> WINDOW == rank)
                local = (1 << WINDOW) - 1
                index = (at[some] & local)[:, None] + np.arange(data.shape[1])
                block = self.cluster[rank - 1]
                self.machine.under_way.append((block, index, data[some], barrier[some] & local))

    def receive(self, index, data, barriers):
        if self.ended:
            raise Fault("a store to a block that has ended")
        if index.min() < 0 or index.max() >= self.shared.data.size or (index[:, 0] % data.shape[1]).any():
            raise Fault("a store outside another block's shared memory, or misaligned")
        if self.shared.unseen[index].any():
            raise Fault("a store to what another one has stored, and nobody has waited for")
        self.shared.data[index], self.shared.unseen[index] = data, True
        for place in np.unique(barriers):
            some = index[barriers == place]
            self.barrier_at(place).arrived.append(some)
            self.barrier_at(place).change(0, -some.size)
