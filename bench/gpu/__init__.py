"""For whoever has a GPU: what is right there, how fast it is, which kernel is the fastest."""
