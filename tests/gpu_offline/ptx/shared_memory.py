"""The shared memory of a block, which finds accesses by two warps that no barrier separates."""

import numpy as np

from .program import Fault


class Shared:
    """A block's shared memory, and which warp touched each byte since the last barrier."""

    def __init__(self, size):
        self.data = np.zeros(size, np.uint8)
        self.epoch = 1
        self.unseen = np.zeros(size, bool)  # what other blocks have stored, and nobody has waited for
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
        if not write and self.unseen[index].any():
            raise Fault("a load of what another block has stored, with no wait for it")
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
