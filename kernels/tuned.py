"""The kernels to take on a card instead of those that step times choose; `make gpu-tune` writes this file."""

# (card, direction, H, B, bytes per number): kernel
TUNED: dict[tuple[str, str, int, int, int], str] = {}
