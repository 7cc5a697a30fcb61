"""How processes of one run end: each notices that another is gone, and a fault of all is told once.

A collective waits for ever for a process that was killed. JAX's coordination service, which the first process keeps,
carries a pulse of each, and whoever misses one ends.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from typing import Any

import jax

LOST = 70
"""Exit code of a process that has lost another: that of an internal error in sysexits.h, which schedulers retry."""

_GRACE = 3.0  # seconds that the first process gives the others to end before it
_FAULT = "flowjax/fault"
_LEFT = "flowjax/left/"
_PULSE = "flowjax/pulse/"
_ENDED = "ended"  # the last pulse of a process that has done its work


def watch(timeout: int) -> None:
    """Starts this process's pulse and the watch over the others, until the end of the process.

    Args:
        timeout: seconds without a pulse after which another counts as gone, and this one ends with `LOST`.
    """
    ending = threading.Event()
    thread = threading.Thread(target=_beat, args=(timeout, ending), daemon=True)
    thread.start()
    atexit.register(lambda: (ending.set(), thread.join(timeout)))  # before JAX's own, which waits for the others


def signed(line: str) -> str | None:
    """A fault's line as this process is to tell it; None where the first process tells the same one.

    Of another process than the first it has the number before it.
    """
    if not _several():
        return line
    store = _store()
    if jax.process_index() == 0:
        store.key_value_set(_FAULT, line, allow_overwrite=True)
        return line
    with contextlib.suppress(Exception):  # the first process has no fault, or is gone
        if store.blocking_key_value_get(_FAULT, int(1e3 * _GRACE)) == line:
            return None
    return f"process {jax.process_index()} of {jax.process_count()}: {line}"


def leave(code: int) -> None:
    """Ends a process that has failed, at once: at the usual end it would wait for the others, and they for it.

    The first one keeps the coordination service, whose end aborts the others: it lets them end before it.
    """
    if not _several():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(Exception):
        if jax.process_index():
            _store().key_value_set(f"{_LEFT}{jax.process_index()}", str(code), allow_overwrite=True)
        else:
            end = time.monotonic() + _GRACE
            while len(_store().key_value_dir_get(_LEFT)) < jax.process_count() - 1 and time.monotonic() < end:
                time.sleep(0.05)
    os._exit(code)


def _several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _store() -> Any:
    """The coordination service's keys and values."""
    from jax._src import distributed  # the only way to it

    return distributed.global_state.client


def _beat(timeout: int, ending: threading.Event) -> None:
    """Beats until the end, and ends this process once another has not beaten for `timeout` seconds."""
    client = _store()
    mine, n = jax.process_index(), jax.process_count()
    seen: dict[int, tuple[str, float]] = {}
    beat = 0
    while not ending.wait(min(1.0, timeout / 4)):
        beat += 1
        try:
            client.key_value_set(f"{_PULSE}{mine}", str(beat), allow_overwrite=True)
            pulses = dict(client.key_value_dir_get(_PULSE))
        except Exception:
            pulses = None  # the first process, which keeps the store, is gone; or this one is ending
        now = time.monotonic()
        for other in range(n):
            pulse = "" if pulses is None else pulses.get(f"{_PULSE}{other}", "")
            if other not in seen or (pulse and pulse != seen[other][0]):
                seen[other] = (pulse, now)
            elif other != mine and seen[other][0] != _ENDED and now - seen[other][1] > timeout:
                sys.stderr.write(
                    f"flowjax: process {other} of {n} has not been heard of for {timeout} s: it is gone, and "
                    f"process {mine} ends too; start all of them again: training resumes from its last checkpoint\n"
                )
                sys.stderr.flush()
                if mine == 0:
                    time.sleep(_GRACE)  # it keeps the store: the others are to find out for themselves first
                os._exit(LOST)
    with contextlib.suppress(Exception):  # the store may be gone
        client.key_value_set(f"{_PULSE}{mine}", _ENDED, allow_overwrite=True)
