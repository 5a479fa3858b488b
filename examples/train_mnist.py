"""Train a peephole LSTM to read handwritten digits row by row: see --help.

On several GPUs, or on hosts that share --out, each process trains on its share of every batch:

    torchrun --nproc-per-node 8 examples/train_mnist.py
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST examples/train_mnist.py
"""

import argparse
import contextlib
import copy
import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from curves import draw
from digits import CLASSES, COLUMNS, PER_CLASS, Digits, load
from files import Unusable, first_line, make_folder, or_one_line
from plain_cell import PlainClassifier, race
from processes import Processes, joined, own_device
from torch import Tensor, nn
from tqdm import tqdm
from trainer import Epoch, Trainer, train_step

import lstm_fused
from lstm_fused.backends.table import select

# Settings that decide the result; a resumed run takes them from its checkpoint.
POSITIVE: dict[str, Any] = {name: int for name in ("hidden_size", "num_layers", "batch_size", "limit")}
POSITIVE["lr"] = float
SETTINGS = {**POSITIVE, "peephole": bool, "seed": int}
RACE_BATCHES = 30
NO_CHECKPOINT = "is not a checkpoint of train_mnist.py"


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and prints the epilog as it is."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, compare and plot; return the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # otherwise a pipe buffers the lines of a long run
    args, state = parse(argv)
    torch.set_num_threads(args.threads)
    with joined(args.device) as processes, contextlib.ExitStack() as muted:
        if processes.rank > 0:
            muted.enter_context(contextlib.redirect_stdout(muted.enter_context(open(os.devnull, "w"))))
        return run(args, state, processes)


def run(args: argparse.Namespace, state: dict[str, Any] | None, processes: Processes) -> int:
    """Run with checked options; only the first process writes files and prints."""
    torch.manual_seed(args.seed)
    with contextlib.nullcontext() if state is None else reading(args.out / "checkpoint.pt"):
        model = lstm_fused.SequenceClassifier(
            COLUMNS, args.hidden_size, args.num_layers, CLASSES, peephole=args.peephole, engine=args.engine
        ).to(args.device)
        trainer = Trainer(model, args.batch_size, args.lr, processes)
        if state is not None:
            trainer.restore(state)
    make_folder(args.out)
    train, test = (part.to(args.device) for part in load(args.limit))

    parameters = sum(parameter.numel() for parameter in model.parameters())
    name = f"LSTM{' with peepholes' if args.peephole else ''}, {args.num_layers} × {args.hidden_size} cells"
    print(f"{len(train.y):,} MNIST digits for training and {len(test.y):,} for testing, read row by row")
    print(f"{name}, {parameters:,} parameters")
    print(f"engine {args.serving} on {args.device}, CPU threads: {args.threads}, torch {torch.__version__}")
    print(f"{processes.count} processes, each with its share of every batch\n" if processes.count > 1 else "")

    try:
        train_epochs(trainer, train, test, args)
    except KeyboardInterrupt:
        print(f"\nStopped in epoch {len(trainer.history) + 1}; --resume continues after the one before.")
        return 130

    if processes.rank > 0:
        return 0
    last = trainer.history[-1]
    epochs = f"{args.epochs} epoch{'s' if args.epochs > 1 else ''}"
    print(f"\nTest accuracy {percent(last.test_accuracy)} after {epochs}\n")
    compare(trainer, model, train)
    draw(trainer.history, f"MNIST digits row by row: {name}", args.out / "curves.png")
    print(f"\nWrote {args.out / 'curves.png'} and {args.out / 'checkpoint.pt'}")
    return 0


def train_epochs(trainer: Trainer, train: Digits, test: Digits, args: argparse.Namespace) -> None:
    """Train up to the last epoch; print a line per epoch and, in a terminal, a progress bar."""
    done, batches = len(trainer.history), -(-len(train.y) // args.batch_size)
    if done:
        print(f"Resuming from the checkpoint, after epoch {done}")
    print("epoch     loss  accuracy   test loss  test accuracy      time")
    bar = tqdm(
        initial=done * batches,
        total=args.epochs * batches,
        unit="batch",
        leave=False,
        disable=None if trainer.processes.rank == 0 else True,  # None: disabled outside a terminal
        dynamic_ncols=True,
    )
    with bar:
        for number in range(done + 1, args.epochs + 1):
            epoch = trainer.run_epoch(train, test, after_batch=bar.update)
            if trainer.processes.rank == 0:
                trainer.save(args.out / "checkpoint.pt", {key: getattr(args, key) for key in SETTINGS})
            bar.write(
                f"{number:2}/{args.epochs:<2} {epoch.train_loss:8.4f} {percent(epoch.train_accuracy):>9} "
                f"{epoch.test_loss:11.4f} {percent(epoch.test_accuracy):>14} {epoch.seconds:7.1f} s"
            )


def compare(trainer: Trainer, model: lstm_fused.SequenceClassifier, train: Digits) -> None:
    """Train copies of the model and of its plain counterpart on the same batches, and print their times."""
    fused, plain = copy.deepcopy(model).train(), PlainClassifier(model)
    size = min(trainer.batch_size, len(train.y))
    order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(0)).to(train.y.device)
    batches = order[: len(order) // size * size].split(size)
    with torch.no_grad():
        x = train.x[batches[0]]
        difference = (fused(x) - plain(x)).abs().max().item()

    def training(model: nn.Module) -> Callable[[Tensor], Tensor]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        return lambda batch: train_step(model, optimizer, train.x[batch], train.y[batch], size)

    ours, theirs = race([training(fused), training(plain)], islice(cycle(batches), 2 + RACE_BATCHES))
    seconds = sum(epoch.seconds for epoch in trainer.history)
    ratio = theirs / ours
    print(f"Training time       {seconds:7.1f} s   {1e3 * ours:6.2f} ms per batch of {size}")
    print(
        f"  on the plain cell ~{seconds * ratio:6.1f} s   {1e3 * theirs:6.2f} ms, {ratio:.1f} times as long"
    )
    print("The plain cell is the same model as a Python loop over the steps.")
    print(f"Its logits differ by {difference:.0e} at most. Times per batch are medians of {RACE_BATCHES},")
    print("trained in turn; the time with ~ is computed from them.")


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """Parse and check the options, choose device and engine; also return the checkpoint to resume from."""
    parser = command_line()
    args = parser.parse_args(argv)
    state = None
    if args.resume:
        path = args.out / "checkpoint.pt"
        state = read_checkpoint(parser, path)
        parser.set_defaults(**state["settings"])
        args = parser.parse_args(argv)
        for key, trained in state["settings"].items():
            if getattr(args, key) != trained:
                option = "--" + key.replace("_", "-")
                parser.error(f"{option}: {path} was trained with {trained}, and --resume cannot change that")
        if args.epochs < len(state["history"]):
            parser.error(f"--epochs: {path} has {len(state['history'])} epochs already, got {args.epochs}")

    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    devices = ["cpu", *([here.type] if here else [])]
    if args.device not in ("auto", *devices):
        parser.error(f"--device: PyTorch finds no {args.device} here, only {', '.join(devices)}")
    args.device = own_device(torch.device(devices[-1] if args.device == "auto" else args.device))
    try:
        args.engine = None if args.engine == "auto" else args.engine
        args.serving = select(args.engine, args.device, torch.float32)
    except RuntimeError as error:
        parser.error(f"--engine: {error}")
    return args, state


def read_checkpoint(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    """Read what `Trainer.save` wrote."""
    try:
        written = path.read_bytes()
    except FileNotFoundError:
        parser.error(f"--out: there is no {path}; train without --resume first, or name another folder")
    except OSError as error:
        parser.error(f"--out: {path} cannot be read: {error.strerror}")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged file can raise anything
        parser.error(f"--out: {path} {NO_CHECKPOINT}: {first_line(error)}")
    try:
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
        settings, history = state["settings"], state["history"]
        if settings.keys() != SETTINGS.keys():
            raise ValueError(f"its settings are {', '.join(settings)}")
        for key, value in settings.items():
            if type(value) is not SETTINGS[key] or (key in POSITIVE and value <= 0):
                raise ValueError(f"{key} is {value!r}")
        [Epoch(**epoch) for epoch in history]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        parser.error(f"--out: {path} {NO_CHECKPOINT}: {first_line(error)}")
    return state


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors from a checkpoint with unsuitable content into `Unusable`."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise Unusable(f"{path} {NO_CHECKPOINT}: {first_line(error)}") from None


def command_line() -> argparse.ArgumentParser:
    """Define all options with their defaults."""
    parser = argparse.ArgumentParser(
        description="Train a peephole LSTM to read 5,000 MNIST digits row by row: 28 steps of 28 pixels.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=Formatter,
    )
    add = parser.add_argument
    add("--epochs", type=positive, default=25, help="passes over the digits")
    add("--hidden-size", type=positive, default=128, help="cells per layer")
    add("--num-layers", type=positive, default=1, help="layers of the LSTM")
    add("--peephole", action=argparse.BooleanOptionalAction, default=True, help="let the gates see the cells")
    add("--batch-size", type=positive, default=50, help="digits per optimizer step")
    add("--lr", type=rate, default=4e-3, help="learning rate; it falls by a tenth per epoch")
    add("--seed", type=int, default=0, help="seed of the parameters and of the order of the digits")
    add("--limit", type=slice_size, default=CLASSES * PER_CLASS, help="number of digits to use")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="device to train on")
    add("--engine", choices=("auto", *lstm_fused.engines()), default="auto", help="engine of the LSTM")
    add("--threads", type=positive, default=torch.get_num_threads(), help="CPU threads")
    add("--out", type=Path, default=Path("out"), help="folder for the checkpoint and the curves")
    add("--resume", action="store_true", help="continue exactly from the checkpoint in --out")
    return parser


def positive(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def slice_size(text: str) -> int:
    """Parse a number of digits: at least five per class, because one in five is for testing."""
    if not text.isdecimal() or not 5 * CLASSES <= int(text) <= PER_CLASS * CLASSES:
        raise argparse.ArgumentTypeError(f"expected {5 * CLASSES} to {PER_CLASS * CLASSES}, got {text!r}")
    return int(text)


def rate(text: str) -> float:
    """Parse a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def percent(fraction: float) -> str:
    """Format 0.961 as 96.1 %."""
    return f"{100 * fraction:.1f} %"


if __name__ == "__main__":
    sys.exit(or_one_line(main))
