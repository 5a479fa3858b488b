"""The engines as PyTorch operators, with derivatives, vmap, autocast and tracing."""
