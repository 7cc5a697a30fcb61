"""Training: the only stateful thing."""

__all__: list[str] = []
