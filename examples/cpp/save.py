"""Saves a small model with an LSTM for C++: as TorchScript and as an AOTInductor package, with x and y."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from lstm_fused import LSTM


class Model(nn.Module):
    """Two layers in both directions, and a linear layer on the last outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = LSTM(28, 32, num_layers=2, bidirectional=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, B, 28] to scores [B, 10]."""
        y: Tensor = self.head(self.lstm(x)[0][-1])
        return y


def save(folder: Path) -> None:
    """Write model.pt, model.pt2, x.pt and y.pt."""
    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(20, 4, 28)
    with torch.no_grad():
        torch.save(x, folder / "x.pt")
        torch.save(model(x), folder / "y.pt")
        torch.jit.save(torch.jit.trace(model, (x,)), folder / "model.pt")
        program = torch.export.export(model, (x,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))


if __name__ == "__main__":
    save(Path(sys.argv[1]))
