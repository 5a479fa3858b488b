"""Draws gates and cell states over one sequence; needs the package matplotlib."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lstm_fused.errors import bad, bad_type
from lstm_fused.gates import Gates
from lstm_fused.reference import previous

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.ticker import MaxNLocator, PercentFormatter
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "lstm_fused.plot needs the package matplotlib: pip install 'lstm_fused[plot]'", name=error.name
    ) from error

SHARES = {"f": ("kept", "#2f6f8f"), "i": ("let in", "#c2452d"), "o": ("shown", "#c99a2e")}
GREY = "#666666"
PERCENT = PercentFormatter(1, decimals=0, symbol=" %")
PANEL, OVERALL = 2.4, 1.8  # inches


def draw_gates(
    gates: Gates, *, input: Tensor | None = None, reverse: bool = False, title: str = ""
) -> Figure:
    """Draw the gates and the memory of every cell over one sequence; time runs downwards.

    A column is the same cell in every panel, and similar cells stand side by side. The last panel has the
    shares over all cells: of the memory that is kept, of the candidate let in, of the memory shown.

    Args:
        gates: gates of one layer over one sequence, each (T, H), as `lstm_fused.inspect` returns them.
        input: the sequence itself, (T, I), to draw beside them.
        reverse: whether the layer ran from the last step to the first.
        title: title of the figure.

    Returns:
        The figure; write it with its ``savefig``.

    Raises:
        ArgumentError: the gates are not those of one sequence, or the input has another T.
    """
    check_gates(gates)
    if gates.c.dim() != 2 or not gates.c.numel():
        raise bad("gates", "those of one sequence, (T, H)", f"shape {tuple(gates.c.shape)}")
    T, H = gates.c.shape
    if input is not None:
        check_input(input, T)
    gates = Gates(*(value.detach().cpu().double() for value in gates))
    order = similarity_order(gates)

    widths = [PANEL] * (4 if input is None else 5) + [OVERALL]
    figure = Figure(figsize=(sum(widths), 4.2), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    *beside, f, i, o, c, overall = figure.subplots(1, len(widths), sharey=True, width_ratios=widths)
    for axes in beside:
        assert input is not None
        draw_image(axes, input.detach().cpu().float(), "Greys")
        axes.set_title("input", loc="left")
        axes.set_xlabel(f"{input.shape[1]} features", color=GREY)
    for axes, (name, (meaning, colour)) in zip((f, i, o), SHARES.items(), strict=True):
        shares = draw_image(axes, getattr(gates, name)[:, order], "viridis", 0, 1)
        axes.set_title(f"{name}: share {meaning}", loc="left", color=colour)
    reach = gates.c.abs().quantile(0.99).item() or 1.0
    memory = draw_image(c, gates.c[:, order], "RdBu_r", -reach, reach)
    c.set_title("c: memory", loc="left")
    for axes in (f, i, o, c):
        axes.set_xlabel(f"{H} cells", color=GREY)
    figure.colorbar(shares, ax=(f, i, o), location="bottom", aspect=60, format=PERCENT)
    figure.colorbar(memory, ax=c, location="bottom", aspect=20, extend="both")
    draw_overall(overall, gates, reverse)
    (beside or [f])[0].set_ylabel("time step", color=GREY)
    f.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def check_gates(gates: object) -> None:
    """Check that these are the gates of one layer, not the dict that `lstm_fused.inspect` returns."""
    if not isinstance(gates, Gates):
        got = type(gates).__name__
        if isinstance(gates, Mapping):
            got += f" with the keys {', '.join(map(repr, gates))}: take the value of one"
        raise bad_type("gates", "the Gates of one layer", got)


def check_input(input: object, T: int) -> None:
    """Check that this is a sequence of T steps."""
    if not isinstance(input, Tensor):
        raise bad_type("input", f"a tensor of shape ({T}, I)", type(input).__name__)
    if input.dim() != 2 or len(input) != T:
        raise bad("input", f"shape ({T}, I), a row for each step of the gates", tuple(input.shape))


def draw_image(
    axes: Axes, values: Tensor, colours: str, low: float | None = None, high: float | None = None
) -> AxesImage:
    """Draw values [T, N], a row for each step."""
    axes.set_xticks([])
    return axes.imshow(
        values.numpy(), aspect="auto", interpolation="nearest", cmap=colours, vmin=low, vmax=high
    )


def draw_overall(axes: Axes, gates: Gates, reverse: bool) -> None:
    """Draw the shares over all cells."""
    c_prev = previous(gates.c[:, None], torch.zeros_like(gates.c[:1]), None, reverse)[:, 0]
    acts_on = {"f": c_prev, "i": gates.g, "o": gates.c.tanh()}
    for name, (meaning, colour) in SHARES.items():
        amount = acts_on[name].abs()  # [T, H]
        share = (getattr(gates, name) * amount).sum(1) / amount.sum(
            1
        )  # NaN, drawn as a gap, if there is no amount
        axes.plot(share.numpy(), range(len(share)), color=colour, label=meaning)
    axes.set_title("over all cells", loc="left")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, handlelength=0.8, fontsize=8, loc="best")


def similarity_order(gates: Gates) -> Tensor:
    """Order of the cells, [H], that places similar ones side by side.

    Cells are sorted by angle in the plane of the first two principal components. The memory has the weight of
    the three gates together.
    """
    shares = torch.cat([gates.f, gates.i, gates.o]) - 0.5  # [3T, H]
    memory = gates.c * (shares.norm() / gates.c.norm().clamp_min(1e-9))
    behaviour = F.normalize(torch.cat([memory, shares]), dim=0)  # [4T, H]
    plane = torch.linalg.svd(behaviour, full_matrices=False).Vh[:2]
    return torch.atan2(plane[-1], plane[0]).argsort()
