"""The engines: where each runs, and how its code is loaded."""
