"""A profiler's trace of a stretch of steps, for XProf."""

from pathlib import Path

import jax

from flowjax.training.writers import say


class Trace:
    """The steps from `start` to `stop`, traced into a folder; nothing where the two are the same.

    A run that starts between the two traces what is left. One that stops between them keeps what it has.

    Args:
        folder: of the trace.
        start: the first step traced is the one after it.
        stop: the last step traced.
    """

    def __init__(self, folder: Path, start: int = 0, stop: int = 0):
        self._folder, self._start, self._stop = folder, start, stop
        self._since: int | None = None  # where the trace that runs was begun

    def borders(self, step: int) -> list[int]:
        """Steps after `step` where tracing begins or ends: stretches must break there."""
        return [border for border in (self._start, self._stop) if border > step]

    def begin(self, step: int) -> None:
        """Begins before the step after `step`, if that is one to trace."""
        if self._since is None and self._start <= step < self._stop:
            try:
                jax.profiler.start_trace(self._folder)
                self._since = step
            except Exception as error:
                self._give_up(error)

    def end(self, step: int) -> None:
        """Ends after `step`, which the device must have finished, if no more are to be traced."""
        if self._since is not None and step >= self._stop:
            since, self._since = self._since, None
            try:
                jax.profiler.stop_trace()
                say(f"train: the trace of steps {since} to {step} is in {self._folder}; xprof shows it")
            except Exception as error:
                self._give_up(error)

    def close(self, step: int) -> None:
        """Ends a trace that is still running when training stops at `step`."""
        self._stop = min(self._stop, step)
        self.end(step)

    def _give_up(self, error: Exception) -> None:
        self._stop = self._start
        say(f"train: no trace ({' '.join(str(error).split())[:200]}); training goes on")
