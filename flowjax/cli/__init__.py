"""The command line: a thin layer, and the only part of flowjax that reads flags."""

__all__: list[str] = []
