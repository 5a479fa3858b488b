"""The kernels to take on a card instead of those that step times choose; by `make gpu-tune`."""

# (card, direction, H, B, bytes per number): kernel; float32 products in tf32.
TUNED: dict[tuple[str, str, int, int, int], str] = {}
