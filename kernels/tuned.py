"""What was measured to be fastest, by card; `make gpu-tune` writes this file. None has been written yet."""

# (card, direction, H, B, bytes per number): kernel
TUNED: dict[tuple[str, str, int, int, int], str] = {}
