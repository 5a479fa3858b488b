"""Benchmarks against torch.nn.LSTM and a step-by-step cell; see python -m bench --help."""
