"""Which nodes are linear layers, and what role each has in its block."""
