"""Training: the compiled steps, the loop on the host, the state, and everything that a run writes."""

__all__: list[str] = []
