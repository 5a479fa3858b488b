"""The engines as PyTorch operators: derivatives, vmap, autocast and tracing."""
