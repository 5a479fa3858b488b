"""float32 functions in numpy, as inexact as NVIDIA documents its instructions ("PTX ISA", version 8).

The error of a result depends on its bits alone, as on a GPU, but follows no rule that code could rely on.
"""

import numpy as np

AMOUNT = 1.0  # of what is documented


def noise(x):
    """Pseudo-random numbers from -1 to 1, a hash of the bits of x."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    for _ in range(2):
        bits = (bits ^ (bits >> np.uint64(15))) * np.uint64(0x2C1B3C6D) & np.uint64(0xFFFFFFFF)
    return AMOUNT * (bits / 2.0**31 - 1)


def inexact(exact, units):
    """Round float64 to float32 with an error of up to ``units`` ulp, rounding included."""
    nearest = np.asarray(exact, np.float32)
    with np.errstate(invalid="ignore"):
        return (exact + noise(nearest) * (units - 0.5) * np.spacing(np.abs(nearest))).astype(np.float32)


def ex2(x):
    """ex2.approx: a relative error of 2^-22."""
    exact = np.exp2(np.asarray(x, np.float64))
    return (exact * (1 + noise(x) * (2.0**-22 - 2.0**-24))).astype(np.float32)


def exp(x):
    """As Triton compiles it."""
    return ex2(np.asarray(x, np.float32) * np.float32(1.4426950408889634))


def divide(x, y):
    """div.full: 2 units in the last place."""
    return inexact(np.divide(np.asarray(x, np.float64), y), 2)


def sqrt(x):
    """sqrt.approx: a relative error of 2^-23, one unit at most."""
    return inexact(np.sqrt(np.asarray(x, np.float64)), 1)
