"""Draw the gates of a trained digit reader while it reads one digit: see --help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from digits import CLASSES, COLUMNS, load
from files import or_one_line, write_figure
from train_mnist import read_checkpoint, reading

import lstm_fused
from lstm_fused.plot import draw_gates, similarity_order


def main(argv: Sequence[str] | None = None) -> int:
    """Read one digit and draw the gates; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Draw the gates of a model trained by train_mnist.py while it reads digits, one in each "
        "picture; cells have the same order in all.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--digit", type=int, nargs="+", choices=range(CLASSES), default=[3], help="digits to read")
    add("--layer", type=int, default=0, help="layer whose gates are drawn")
    add("--out", type=Path, default=Path("out"), help="folder of the checkpoint and of the picture")
    args = parser.parse_args(argv)

    state = read_checkpoint(parser, args.out / "checkpoint.pt")
    settings = state["settings"]
    layers = settings["num_layers"]
    if not 0 <= args.layer < layers:
        parser.error(f"--layer: {args.out / 'checkpoint.pt'} has layers 0 to {layers - 1}, got {args.layer}")
    with reading(args.out / "checkpoint.pt"):
        model = lstm_fused.SequenceClassifier(
            COLUMNS, settings["hidden_size"], layers, CLASSES, peephole=settings["peephole"]
        ).eval()
        model.load_state_dict(state["model"])

    _, test = load(settings["limit"])
    images = {digit: test.x[test.y == digit][0] for digit in args.digit}  # [28, 28]
    gates = {digit: lstm_fused.inspect(model, x)[f"lstm.l{args.layer}"] for digit, x in images.items()}
    order = similarity_order(*gates.values())
    for digit, x in images.items():
        with torch.no_grad():
            probability, read_as = model(x).softmax(0).max(0)
        answer = f"read row by row as {read_as} ({100 * probability:.0f} %)"
        title = f"MNIST digit {digit}, {answer}: layer {args.layer}"
        path = args.out / f"gates_{digit}.png"
        write_figure(path, draw_gates(gates[digit], input=x, title=title, order=order), dpi=150)
        print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(or_one_line(main))
