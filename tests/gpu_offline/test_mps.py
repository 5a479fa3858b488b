"""The reference is what runs on MPS: it may use nothing that MPS lacks, float64 included."""

from dataclasses import replace

import pytest
import torch
from cases import PLAIN, make_tensors
from digits import Digits
from like_mps import LikeMPS
from processes import Processes
from trainer import Trainer

import lstm_fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize(
    "case",
    [replace(PLAIN, T=3), replace(PLAIN, T=3, P=4, lengths=(1, 3, 0), reverse=True)],
    ids=["plain", "busy"],
)
def test_one_layer_with_second_derivatives(case, dtype):
    t = make_tensors(case, dtype)
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    leaves = [v.requires_grad_() for v in t.values() if v is not None]
    with LikeMPS():
        y, (h_n, c_n) = lstm_fused.lstm(
            t["x"], t["weight_ih"], t["weight_hh"], t["bias_ih"], t["bias_hh"], peephole=t["peephole"],
            weight_hr=t["weight_hr"], hx=(t["h0"], t["c0"]), lengths=lengths, reverse=case.reverse,
            engine="reference",
        )  # fmt: skip
        loss = y.sum() + h_n.sum() + c_n.sum()
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        torch.autograd.grad(sum((g * g).sum() for g in grads), leaves, allow_unused=True)


def test_module():
    model = lstm_fused.LSTM(5, 7, 2, bidirectional=True, dropout=0.1, engine="reference")
    x, lengths = torch.randn(4, 3, 5), torch.tensor([4, 1, 0])
    with LikeMPS():
        y, _ = model(x, lengths=lengths)
        y.sum().backward()


def test_the_example_trains():
    def drawn(n):
        return Digits(torch.rand(n, 28, 28), torch.randint(10, (n,)))

    model = lstm_fused.SequenceClassifier(28, 5, 2, 10, engine="reference")
    trainer = Trainer(model, 4, lr=1e-3, processes=Processes())
    with LikeMPS():
        trainer.run_epoch(drawn(8), drawn(4), after_batch=lambda: None)


def test_what_mps_lacks_is_rejected():
    with LikeMPS(), pytest.raises(TypeError, match="float64"):
        torch.randn(3).double()
    with LikeMPS(), pytest.raises(NotImplementedError, match="geqrf"):
        torch.geqrf(torch.randn(3, 3))
