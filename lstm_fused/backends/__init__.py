"""The table of engines, and the loading of their code."""
