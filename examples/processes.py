"""Training in several processes at once, as torchrun starts them; a process alone is one of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """Those that train one model together: this one's number, and how many they are."""

    rank: int = 0
    count: int = 1

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch; it may be empty."""
        return batch[self.rank :: self.count]

    def connect(self, model: nn.Module) -> nn.Module:
        """The same model, whose gradients become their mean over all processes."""
        return DistributedDataParallel(model) if self.count > 1 else model

    def total(self, part: Tensor) -> Tensor:
        """The sum of all processes' parts."""
        if self.count > 1:
            dist.all_reduce(part)
        return part


def own_device(device: torch.device) -> torch.device:
    """Of several GPUs, the one that belongs to this process."""
    local_rank = os.environ.get("LOCAL_RANK")
    return device if local_rank is None or device.type != "cuda" else torch.device("cuda", int(local_rank))


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the others that torchrun has started, if it has; leave at the end."""
    if not dist.is_torchelastic_launched():
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
        # Gloo's threads let go of the last reduction's tensors late, and abort if Python is ending by then.
        dist.barrier()
    finally:
        dist.destroy_process_group()
