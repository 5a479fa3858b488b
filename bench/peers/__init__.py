"""The contestants: PyTorch modules, and other libraries in processes of their own."""
