"""What each process of tests/test_distributed.py does: a step on half of a batch, by DDP, FSDP and FSDP2."""

import sys
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from lstm_fused import SequenceClassifier

WHOLE = StateDictOptions(full_state_dict=True)


def make_model(frozen):
    """A model whose peepholes are trained, or frozen."""
    torch.manual_seed(0)
    model = SequenceClassifier(5, 7, 2, 3).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and "peephole" in name))
    return model


def make_batch():
    """Eight sequences of different lengths."""
    torch.manual_seed(1)
    x = torch.randn(8, 6, 5, dtype=torch.float64)
    return x, torch.tensor([3, 6, 1, 6, 0, 2, 5, 4]), torch.arange(8) % 3


def step(model, x, lengths, y):
    """A step as long as the gradient, so that the parameters before and after tell it."""
    F.cross_entropy(model(x, lengths=lengths), y).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()


def sharded(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.lstm, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def wrapped(model):
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


WAYS = {"DDP": DistributedDataParallel, "FSDP": wrapped, "FSDP2": sharded}


def outcome(way, frozen, part):
    """The state dict after a step, and that of a model which has loaded it."""
    model, other = way(make_model(frozen)), way(make_model(frozen))
    step(model, *part)
    state = get_model_state_dict(model, options=WHOLE)
    given = [dict(state)]
    dist.broadcast_object_list(given)  # the first process has all of it
    set_model_state_dict(other, given[0], options=WHOLE)
    return state, get_model_state_dict(other, options=WHOLE)


def main(out):
    dist.init_process_group("gloo")
    part = [t[dist.get_rank() :: dist.get_world_size()] for t in make_batch()]
    found = {
        (name, frozen): outcome(way, frozen, part)
        for (name, way), frozen in product(WAYS.items(), (False, True))
    }
    if dist.get_rank() == 0:
        torch.save(found, out)
    # Gloo's threads release the last gradient late, and abort if Python is exiting by then.
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
