"""Train a character language model on Python's documentation and generate text: see --help.

It uses truncated backpropagation through time: the text is cut into parallel streams, each window of a stream
starts with the last states of the window before it, and gradients stop at the window's start.
"""

import bz2
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
import torch.nn.functional as F
from study import GREY, PEEPHOLE, RNN, options, panels, report, table, until_interrupted
from torch import Tensor, nn
from tqdm import tqdm

import lstm_fused

HELD_OUT = 0.1  # share of the text that is held out, at its end


@dataclass(frozen=True)
class Plan:
    """Sizes of one run."""

    cells: int
    streams: int  # B
    window: int  # T
    epochs: int
    letters: int  # maximum length of the text


PLANS = {
    "quick": Plan(32, 8, 32, 1, 10_000),
    "default": Plan(256, 16, 100, 10, 10_000_000),
    "full": Plan(1024, 32, 100, 40, 10_000_000),
}
States = tuple[Tensor, Tensor]


class Epoch(NamedTuple):
    """Bits per letter."""

    train: float
    test: float


class Writer(nn.Module):
    """An LSTM that scores the next letter at every step."""

    def __init__(self, letters: int, cells: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, 64)
        self.lstm = lstm_fused.LSTM(64, cells)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(cells, letters)

    def forward(self, text: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Map letters [T, B] to logits [T, B, letters] and the last states."""
        y, states = self.lstm(self.dropout(self.embedding(text)), states)
        return self.head(self.dropout(y)), states


def load(limit: int) -> str:
    """Return the text of Python's help topics; paragraphs that several topics share occur once."""
    paragraphs = dict.fromkeys(p for topic in topics.values() for p in topic.split("\n\n"))
    return "\n\n".join(paragraphs)[:limit]


def windows(text: Tensor, streams: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a text [N] into parallel streams; yield windows [T, B] and their next letters [T, B]."""
    steps = (len(text) - 1) // streams
    now, following = (t[: streams * steps].view(streams, steps).T for t in (text, text[1:]))
    yield from zip(now.split(length), following.split(length), strict=True)


def train_epoch(
    model: Writer, optimizer: torch.optim.Optimizer, text: Tensor, plan: Plan, bar: tqdm
) -> float:
    """Train on the text once; return bits per letter."""
    model.train()
    states, total, count = None, 0.0, 0
    for now, following in windows(text, plan.streams, plan.window):
        logits, (h, c) = model(now, states)
        states = h.detach(), c.detach()  # gradients stop here
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total, count = total + loss.item() * now.numel(), count + now.numel()
        bar.update()
    return total / count / math.log(2)


@torch.no_grad()
def bits_per_letter(model: Writer, text: Tensor, window: int) -> float:
    """Evaluate a text [N] as one stream, in windows of this many letters."""
    model.eval()
    states, total = None, 0.0
    for now, following in windows(text, 1, window):
        logits, states = model(now, states)
        total += F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum").item()
    return total / (len(text) - 1) / math.log(2)


@torch.no_grad()
def write(model: Writer, alphabet: str, prompt: str, count: int, temperature: float = 0.7) -> str:
    """Continue a prompt one letter at a time, with carried states."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    logits, states = model(torch.tensor([[alphabet.index(letter)] for letter in prompt]))
    written = prompt
    for _ in range(count):
        odds = torch.softmax(logits[-1, 0] / temperature, dim=0)
        letter = torch.multinomial(odds, 1, generator=generator)
        written += alphabet[int(letter)]
        logits, states = model(letter[None], states)
    return written


def compressed(text: str, known: int) -> float:
    """Return the bits per letter of bz2 for the text after the first `known` letters, given those."""
    whole, start = (len(bz2.compress(part.encode())) for part in (text, text[:known]))
    return 8 * (whole - start) / (len(text) - known)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, report bits per letter and generate text; return the exit status."""
    opts = options(__doc__, seeds=1, argv=argv)
    torch.set_num_threads(opts.jobs)  # there is only one run, so it takes the threads of all jobs
    plan = PLANS[opts.size]
    text = load(plan.letters)
    alphabet = "".join(sorted(set(text)))
    codes = torch.tensor([alphabet.index(letter) for letter in text])
    known = int(len(text) * (1 - HELD_OUT))
    read, held_out = codes[:known], codes[known:]
    print(f"{known:,} training letters, {len(held_out):,} test letters, an alphabet of {len(alphabet)}")

    torch.manual_seed(0)
    model = Writer(len(alphabet), plan.cells)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.epochs)
    per_epoch = sum(1 for _ in windows(read, plan.streams, plan.window))
    history = []
    with tqdm(total=plan.epochs * per_epoch, unit="window", leave=False, disable=None) as bar:
        for number in range(1, plan.epochs + 1):
            learning = train_epoch(model, optimizer, read, plan, bar)
            schedule.step()
            history.append(Epoch(learning, bits_per_letter(model, held_out, 1000)))
            bar.write(f"epoch {number:2}: {learning:.3f} bits per letter, {history[-1].test:.3f} in the test")

    start = held_out[:2000]
    by_one, by_many = bits_per_letter(model, start, 1), bits_per_letter(model, start, 1000)
    rows = [
        ["peephole LSTM", f"{history[-1].test:.3f}"],
        ["bz2, which has seen the same text", f"{compressed(text, known):.3f}"],
        ["the first 2,000 letters, 1,000 at a time", f"{by_many:.5f}"],
        ["the same, one at a time with the states carried", f"{by_one:.5f}"],
    ]
    figure, (axes,) = panels(1, 1, f"Python's documentation, letter by letter: {plan.cells} cells")
    epochs = range(1, plan.epochs + 1)
    axes.plot(epochs, [epoch.train for epoch in history], ".-", color=RNN, label="learning (with dropout)")
    axes.plot(epochs, [epoch.test for epoch in history], ".-", color=PEEPHOLE, label="test")
    axes.set_xlabel("epoch", color=GREY)
    axes.set_ylabel("bits per letter", color=GREY)
    axes.legend(frameon=False, fontsize=8)
    written = write(model, alphabet, "The ", 400)
    page_text = f"{table(('held-out text', 'bits per letter'), rows)}\n\n```text\n{written}\n```"
    report(opts, "char_lm", page_text, figure)
    return 0


if __name__ == "__main__":
    sys.exit(until_interrupted(main))
