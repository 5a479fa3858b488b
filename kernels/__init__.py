"""The Triton kernels, installed as `lstm_fused.kernels`; they come with the GPU engine."""
