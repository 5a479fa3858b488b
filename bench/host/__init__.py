"""The machine: versions, limits, processes with a fresh environment."""
