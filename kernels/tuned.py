"""What was measured to be fastest, by card; `make gpu-tune` writes this file. No card was measured yet."""

# (card, direction, H, B, bytes per number): kernel
TUNED: dict[tuple[str, str, int, int, int], str] = {}
