"""What each process of tests/test_distributed.py does: gradients of its half of a batch, by DDP and FSDP2."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lstm_fused import SequenceClassifier


def make_model():
    torch.manual_seed(0)
    return SequenceClassifier(5, 7, 2, 3).double()


def make_batch():
    """Eight sequences of different lengths."""
    torch.manual_seed(1)
    x = torch.randn(8, 6, 5, dtype=torch.float64)
    return x, torch.tensor([3, 6, 1, 6, 0, 2, 5, 4]), torch.arange(8) % 3


def gradients(model, x, lengths, y):
    F.cross_entropy(model(x, lengths=lengths), y).backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}


def sharded(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.lstm, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main(out):
    dist.init_process_group("gloo")
    part = [t[dist.get_rank() :: dist.get_world_size()] for t in make_batch()]
    by_ddp = gradients(DistributedDataParallel(make_model()), *part)
    by_fsdp = {name: g.full_tensor() for name, g in gradients(sharded(make_model()), *part).items()}
    if dist.get_rank() == 0:
        torch.save({"DDP": by_ddp, "FSDP2": by_fsdp}, out)
    # Gloo's threads release the last gradient late, and abort if Python is exiting by then.
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
