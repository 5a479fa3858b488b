"""Checks a plan on this card: compares a small problem with the reference in float64.

The problem has lengths, peepholes and every option of the layer, and one row more than a program takes, so
that there are two rows of programs. It runs in both time directions, and twice each to compare bits, in
memory filled with NaN. A plan for half of the card runs once and then twice at the same time. The inputs are
the same at every check, and so is the verdict. A plan names the sizes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from lstm_fused.kernels.plan import Layer, Plan
from lstm_fused.kernels.scratch import raise_if_timed_out, timed_out
from lstm_fused.kernels.verdicts import Verdict
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_fused import reference
from lstm_fused.backends.streams import DEVICE, side_by_side
from lstm_fused.contract import PLAIN, Inputs, OutputGradients, Saved, Variant, mapped
from lstm_fused.reference import accumulation_dtype

I = 5
# Largest allowed error by bytes of the dtype, in ulps of the largest element of a result, or in the change
# that one ulp in every operand causes if that is larger. Half precision rounds only h and stored results,
# half an ulp each; the other dtypes also round sums, 3 ulps, and the card's exponentials are less exact.
ALLOWED = {2: 4, 4: 16, 8: 16}
TF32 = 2**-10
HELD = 20_000_000  # cycles, about 10 ms
aten = torch.ops.aten
EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}


def check(plan: Any, layer: Layer, device: torch.device) -> Verdict | None:
    """Run a plan on the small problem; None if memory is insufficient, which is no verdict.

    Raises:
        RuntimeError: a wait in a launch before the check timed out.
    """
    synchronize(device)  # launches before the check may still be waiting
    raise_if_timed_out(device)
    shares = []
    try:
        with torch.no_grad():
            for (checked, steps), reverse in product(plan.problems(layer), (False, True)):
                operands = problem(plan, checked, steps, reverse)
                where = f"T={steps}, reverse={reverse}"
                where += f", H={checked.H}" if checked.H != layer.H else ""
                # Forward in time one launch runs both rows and all steps. In reverse each row has its own
                # with Triton, and each step with Metal.
                launched = replace(plan, at_once=1) if reverse else plan
                run, exact_run = (getattr(module, layer.direction) for module in (plan.launch, reference))
                wide, by = all_mapped(widened, operands), unit(plan, layer)
                exact, near = exact_run(*wide), exact_run(*all_mapped(partial(nudged, by=by), wide))
                there = all_mapped(partial(Tensor.to, device=device), operands)
                runs = []
                for streams in (1, layer.streams):
                    runs += run_at_once(streams, run, there, launched, device)
                    synchronize(device)
                    if timed_out(device):  # another process may occupy the card: this verdict is not stored
                        late = f"a program timed out waiting for others, {where}"
                        return Verdict(False, late, lasting=False)
                for name, wanted, moved, found, *again in zip(exact._fields, exact, near, *runs, strict=True):
                    off, largest = difference(found, wanted), difference(wanted, torch.zeros_like(wanted))
                    size = max(unit(plan, layer) * largest, difference(moved, wanted))
                    allowed = ALLOWED[layer.dtype.itemsize] * size
                    said = f"{name} is off by {off:.2g} where {allowed:.2g} is allowed, {where}"
                    if off > allowed:
                        return Verdict(False, said)
                    if not all(torch.equal(found, other) for other in again):
                        return Verdict(False, f"{name} differs from run to run, {where}")
                    shares.append((off / allowed if allowed else 0.0, said))
    except torch.OutOfMemoryError:
        return None
    except Exception as error:  # any error of compiling or launching is a failed check
        if "MPS backend out of memory" in str(error):  # a RuntimeError
            return None
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Verdict(False, said[:500], lasting=broken(device))
    return Verdict(True, max(shares)[1])


def run_at_once(
    streams: int, run: Any, operands: tuple[Any, ...], plan: Plan, device: torch.device
) -> list[Any]:
    """The results of a run; of two that are on the card at the same time if there are two streams."""
    if streams == 1 or device.type != DEVICE:
        return [poisoned(run, operands, plan) for _ in range(streams)]
    with torch.cuda.stream(torch.cuda.current_stream(device)):  # of this card
        torch.cuda._sleep(HELD)  # both are launched meanwhile
    return side_by_side(device, poisoned, *[(run, operands, plan)] * 2)


def problem(plan: Any, layer: Layer, T: int, reverse: bool) -> tuple[Any, ...]:
    """The inputs of the layer's direction, on the CPU."""
    B, H, P = plan.rows + 1, layer.H, layer.P or layer.H
    generator = torch.Generator().manual_seed(H)

    def uniform(*shape: int, low: float = -1, high: float = 1, wide: bool = False) -> Tensor:
        drawn = torch.empty(shape, dtype=torch.float64, device="cpu").uniform_(low, high, generator=generator)
        return drawn.to(accumulation_dtype(layer.dtype) if wide else layer.dtype)

    def weights(rows: int, columns: int) -> Tensor:
        return uniform(rows, columns, high=(bound := (3 / columns) ** 0.5), low=-bound)

    lengths = (T - 1 - torch.arange(B, device="cpu")) % (T + 1)  # 3 2 1 0 4 ...
    weight_hh, peephole = weights(4 * H, P), uniform(3, H)
    weight_hr = weights(P, H) if layer.P else None
    variant, hw = PLAIN, None
    if layer.varied:
        gain, h_mask = uniform(4 * H, low=0.5, high=1.5), uniform(B, P).sign().clamp(min=0)
        zoneouts = uniform(T, B, P, low=0), uniform(T, B, H, low=0)
        variant, hw = Variant(gain, h_mask, *zoneouts, cell_clip=0.7), uniform(T, B, 4 * H, wide=True)
    states = uniform(B, P), uniform(B, H)
    inputs = Inputs(
        uniform(T, B, I),
        weights(4 * H, I),
        weight_hh,
        uniform(4 * H),
        uniform(4 * H),
        peephole,
        weight_hr,
        *states,
        lengths,
        reverse,
        True,
        variant,
    )
    if layer.direction == "forward":
        return (inputs,)
    outputs = reference.forward(mapped(widened, inputs))
    c, gates = outputs.c.to(accumulation_dtype(layer.dtype)), outputs.gates.to(layer.dtype)
    saved = Saved(c, gates, states[1], weight_hh, peephole, weight_hr, lengths, reverse, variant, hw)
    return saved, OutputGradients(uniform(T, B, P), uniform(B, P), uniform(B, H))


def all_mapped(change: Callable[[Tensor], Tensor], records: tuple[Any, ...]) -> tuple[Any, ...]:
    """The records with each tensor changed."""
    return tuple(mapped(change, record) for record in records)


def widened(tensor: Tensor) -> Tensor:
    """Floating-point tensors in float64."""
    return tensor.double() if tensor.is_floating_point() else tensor


def nudged(tensor: Tensor, by: float) -> Tensor:
    """The tensor with a relative change of each element, of alternating sign."""
    if not tensor.is_floating_point():
        return tensor
    signs = torch.arange(tensor.numel(), device="cpu").view(tensor.shape) % 2 * 2 - 1
    return tensor * (1 + by * signs)


def poisoned(run: Any, operands: tuple[Any, ...], plan: Plan) -> Any:
    """Run a plan in memory filled with NaN."""
    with Poison():
        return run(*operands, plan=plan)


class Poison(TorchDispatchMode):
    """Fills new tensors with NaN, so that elements that are never written show."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function.overloadpacket in EMPTY and made.is_floating_point():
            made.fill_(torch.nan)
        return made


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, infinite if there is a NaN, 0 between nothing and nothing."""
    off = (found.cpu().double() - wanted).abs().nan_to_num(nan=torch.inf)
    return float(off.max()) if off.numel() else 0.0


def unit(plan: Plan, layer: Layer) -> float:
    """One ulp of 1 in the precision of the products."""
    short = layer.dtype == torch.float32 and plan.precision == "tf32"
    return TF32 if short else torch.finfo(layer.dtype).eps


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that was launched."""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        torch.cuda.synchronize(device)


def broken(device: torch.device) -> bool:
    """True if the device cannot be used any more in this process; then the verdict is stored."""
    try:
        synchronize(device)
    except RuntimeError:
        return True
    return False
