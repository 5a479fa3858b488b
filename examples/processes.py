"""Data-parallel training in the processes that torchrun starts; without torchrun there is one process."""

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
    """Rank of this process and number of processes that train one model."""

    rank: int = 0
    count: int = 1

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part of a batch, which may be empty."""
        return batch[self.rank :: self.count]

    def connect(self, model: nn.Module) -> nn.Module:
        """Wrap the model so that its gradients are averaged over all processes."""
        return DistributedDataParallel(model) if self.count > 1 else model

    def total(self, part: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.count > 1:
            dist.all_reduce(part)
        return part


def own_device(device: torch.device) -> torch.device:
    """Return the GPU of this process."""
    local_rank = os.environ.get("LOCAL_RANK")
    return device if local_rank is None or device.type != "cuda" else torch.device("cuda", int(local_rank))


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the process group that torchrun started, if any, and leave it at the end."""
    if not dist.is_torchelastic_launched():
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
        # Gloo's threads release the last reduction's tensors late, and abort if Python is exiting by then.
        dist.barrier()
    finally:
        dist.destroy_process_group()
