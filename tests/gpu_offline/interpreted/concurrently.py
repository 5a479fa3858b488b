"""Runs the programs of an interpreted launch concurrently, on memory as weak as a GPU's.

Each program is a thread, one of which runs at a time; at atomics, and sometimes at loads and stores, another
one, drawn at random, takes over. Stores stay in the program's store buffer until it releases them, or drain
one by one in any order. Vector clocks detect races: two accesses to a number, one of them a store, that no
release and acquire order, in whichever order they happened. Accesses outside every tensor are errors, as are
endless waits.

This depends on internals of Triton 3.8: GridExecutor.__call__ and InterpreterBuilder's memory operations.
"""

import inspect
import random
import threading
from contextlib import contextmanager
from functools import partial
from itertools import product

import numpy as np
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

SWITCHES = 200_000  # more than any launch here takes, unless it waits forever
here = threading.local()


class Race(Exception):
    """Two accesses that no synchronization orders."""


class Deadlock(Exception):
    """A program waits forever."""


class Stop(BaseException):
    """Another program failed."""


class Region:
    """The last writer of each number of a tensor, and its readers, by their own clocks."""

    def __init__(self, tensor, programs):
        self.start, self.size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        self.item = tensor.element_size()
        self.writer = np.full(tensor.numel(), -1)
        self.written = np.zeros(tensor.numel(), np.int64)
        self.read = np.zeros((programs, tensor.numel()), np.int64)

    def __contains__(self, address):
        return self.start <= address < self.start + self.size


class Launch:
    """The programs of one launch and the memory they share."""

    def __init__(self, programs, tensors, seed):
        self.programs, self.random = programs, random.Random(seed)
        self.turn = [threading.Semaphore(0) for _ in range(programs)]
        self.over = threading.Semaphore(0)
        self.running = set(range(programs))
        self.switches, self.error = 0, None
        self.pending = [[] for _ in range(programs)]
        self.clock = np.eye(programs, dtype=np.int64)
        self.released = {}  # the clock that a release at an address publishes
        self.regions = [Region(t, programs) for t in tensors if t.numel()]

    def switch(self):
        self.switches += 1
        if self.switches > SWITCHES:
            self.error = self.error or Deadlock("a program waits for an arrival that never comes")
        if self.error:
            raise Stop
        self.leak(here.program)
        chosen = self.random.choice(sorted(self.running))
        if chosen != here.program:
            self.turn[chosen].release()
            self.turn[here.program].acquire()
            if self.error:
                raise Stop

    def leak(self, program):
        """Drain some stores, in any order."""
        pending = self.pending[program]
        for store in self.random.sample(pending, self.random.randint(0, len(pending))):
            pending.remove(store)
            interpreter._interpreter.store(*store.parts)

    def flush(self, program):
        for store in self.pending[program]:
            interpreter._interpreter.store(*store.parts)
        self.pending[program].clear()

    def find(self, addresses):
        for region in self.regions:
            if int(addresses[0]) in region:
                index = (addresses - region.start) // region.item
                if index.min() >= 0 and index.max() < len(region.writer):
                    return region, index
        raise Race(f"program {here.program} leaves the tensors")

    def load(self, pointers, mask):
        addresses = touched(pointers, mask)
        if addresses.size:
            region, index = self.find(addresses)
            self.check_writes(region, index, "loads")
            region.read[here.program, index] = self.clock[here.program, here.program]

    def store(self, pointers, mask):
        addresses = touched(pointers, mask)
        if addresses.size:
            region, index = self.find(addresses)
            self.check_writes(region, index, "stores over")
            unordered = region.read[:, index] > self.clock[here.program][:, None]
            unordered[here.program] = False
            if unordered.any():
                raise Race(f"program {here.program} stores over what another may still have to load")
            region.writer[index] = here.program
            region.written[index] = self.clock[here.program, here.program]

    def check_writes(self, region, index, what):
        writer = region.writer[index]
        others = (writer >= 0) & (writer != here.program)
        unordered = others & (region.written[index] > self.clock[here.program][writer])
        if unordered.any():
            raise Race(f"program {here.program} {what} what program {writer[unordered][0]} stored, unordered")

    def atomic(self, address, order):
        me = here.program
        if "release" in order:
            self.flush(me)
            self.released[address] = np.maximum(self.released.get(address, 0), self.clock[me])
            self.clock[me, me] += 1
        if "acquire" in order and address in self.released:
            self.clock[me] = np.maximum(self.clock[me], self.released[address])

    def run(self, body, program, index):
        here.launch, here.program, here.index = self, program, index
        self.turn[program].acquire()
        try:
            if not self.error:
                body()
        except Stop:
            pass
        except BaseException as error:
            while error.__cause__ is not None:
                error = error.__cause__
            if not isinstance(error, Stop):
                self.error = self.error or error
        self.flush(program)
        self.running.remove(program)
        (self.turn[self.random.choice(sorted(self.running))] if self.running else self.over).release()


class Store:
    """What `Launch.pending` holds; two are never equal."""

    def __init__(self, pointers, values, mask):
        self.parts = pointers.copy(), values.copy(), np.array(mask)
        self.addresses = touched(pointers, mask)


def touched(pointers, mask):
    """The addresses of one load or store, in a row."""
    return pointers[np.broadcast_to(mask, pointers.shape).astype(bool)].astype(np.int64)


@contextmanager
def concurrently(seed, launches=1):
    """Within this, every launch runs its programs concurrently; so many launches, alike, together."""
    held = []
    plain = {
        name: getattr(InterpreterBuilder, name) for name in ("create_masked_load", "create_masked_store")
    }
    plain_rmw, plain_call = InterpreterBuilder.create_atomic_rmw, GridExecutor.__call__

    def load(self, pointers, mask, *rest):
        launch = here.launch
        if launch.random.random() < 0.1:
            launch.switch()
        wanted = touched(pointers.data, mask.data)
        if any(np.isin(store.addresses, wanted).any() for store in launch.pending[here.program]):
            launch.flush(here.program)  # a program sees its own stores
        launch.load(pointers.data, mask.data)
        return plain["create_masked_load"](self, pointers, mask, *rest)

    def store(self, pointers, value, mask, *_):
        launch = here.launch
        if launch.random.random() < 0.1:
            launch.switch()
        launch.store(pointers.data, mask.data)
        launch.pending[here.program].append(Store(pointers.data, value.data, mask.data))

    def atomic_rmw(self, kind, pointer, value, mask, order, scope):
        here.launch.switch()
        here.launch.atomic(int(pointer.data.ravel()[0]), str(order).lower())
        return plain_rmw(self, kind, pointer, value, mask, order, scope)

    def call(self, *arguments, **options):
        names = inspect.getfullargspec(self.fn).args
        options = {name: value for name, value in options.items() if name in names}
        scope = interpreter._patch_lang(self.fn)
        try:
            raw = inspect.getcallargs(self.fn, *arguments, **options)
            tensors = [value for value in raw.values() if hasattr(value, "data_ptr")]
            converted = {
                name: value if name in self.constexprs else interpreter._implicit_cvt(value)
                for name, value in raw.items()
            }
            grid = (*self.grid, 1, 1)[:3]
            held.append((partial(self.fn, **converted), tensors))
            if len(held) < launches:
                return
            bodies, tensors = zip(*held, strict=True)
            held.clear()
            interpreter.interpreter_builder.set_grid_dim(*grid)
            indices = list(np.ndindex(grid))
            every = [tensor for of in tensors for tensor in of]
            launch = Launch(len(bodies) * len(indices), every, seed)
            threads = [
                threading.Thread(target=launch.run, args=(body, program, index), daemon=True)
                for program, (body, index) in enumerate(product(bodies, indices))
            ]
            for thread in threads:
                thread.start()
            launch.turn[launch.random.randrange(launch.programs)].release()
            launch.over.acquire()
            for thread in threads:
                thread.join()
            if launch.error:
                raise launch.error
        finally:
            scope.restore()

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
    InterpreterBuilder.create_atomic_rmw, GridExecutor.__call__ = atomic_rmw, call
    InterpreterBuilder.grid_idx = property(lambda self: here.index, lambda self, value: None)
    try:
        yield
    finally:
        del InterpreterBuilder.grid_idx
        InterpreterBuilder.create_atomic_rmw, GridExecutor.__call__ = plain_rmw, plain_call
        for name, method in plain.items():
            setattr(InterpreterBuilder, name, method)
