"""The kernels measured to be fastest, by card; `make gpu-tune` writes this file. Nothing is measured yet."""

# (card, direction, H, B, bytes per number): kernel
TUNED: dict[tuple[str, str, int, int, int], str] = {}
