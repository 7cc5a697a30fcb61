"""The command line: thin, and the only place that reads flags."""

__all__: list[str] = []
