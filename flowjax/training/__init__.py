"""Training: the only stateful thing."""
