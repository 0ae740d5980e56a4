"""Measuring activations: where samples come from, and what is kept of a run."""
