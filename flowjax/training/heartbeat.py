"""How processes of one run end: each notices that another has ended, and a fault of all is reported once.

A collective never returns if a process that takes part in it was killed. JAX's coordination service, which the first
process keeps, has heartbeats of its own, but JAX 0.10 answers a missing one by aborting the process: SIGABRT, a stack
trace of native code and "another task died", with no process named, and `jax.distributed.initialize` does not take the
callback that the native client has for it. These heartbeats end the process with exit code 70, which schedulers retry,
and one line that names the process that is gone.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from flowjax.errors import out_of_memory

__all__ = ["LOST", "deadline", "leave", "lost_by", "signed", "watch"]

LOST = 70
"""Exit code of a process that has lost another: that of an internal error in sysexits.h, which schedulers retry."""

_GRACE = 3.0  # seconds that processes give each other to end
_AGAIN = "start all of them again: training resumes from its last checkpoint"
_FAULT = "flowjax/fault"
_LEFT = "flowjax/left/"
_HEARTBEAT = "flowjax/heartbeat/"
_ENDED = "ended"  # the last heartbeat of a process that has done its work

_leaving = threading.Event()
_limit = 0.0  # `timeout` of `watch`


def watch(timeout: int) -> None:
    """Starts this process's heartbeat and the watch over the others, until the end of the process.

    Args:
        timeout: seconds without a heartbeat after which another counts as gone, and this one ends with `LOST`.
    """
    global _limit
    _limit = timeout
    ending = threading.Event()
    thread = threading.Thread(target=_beat, args=(timeout, ending), daemon=True)
    thread.start()
    atexit.register(lambda: (ending.set(), thread.join(timeout)))  # before JAX's own, which waits for the others


@contextlib.contextmanager
def deadline(seconds: float, complaint: str) -> Iterator[None]:
    """Ends this process with one line and `LOST` if the body takes longer, and at once on SIGTERM or Ctrl-C.

    For a call of native code that aborts with a stack trace when its own time is over, and in which Python does not
    run its handlers of signals.
    """

    def end() -> None:
        sys.stderr.write(f"flowjax: {complaint}; start all of them within that time\n")
        sys.stderr.flush()
        os._exit(LOST)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for number, handler in handlers.items():
            signal.signal(number, handler)


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


def lost_by(error: Exception) -> str | None:
    """One line if an error is that of a collective whose other processes have ended; None for any other error.

    The runtime's error states that a connection was closed, but not why. So this waits until it is known which process
    has ended: either that process has reported it (`leave`), or its heartbeat is missing, and the watch ends this
    process.
    """
    if not _several() or not isinstance(error, jax.errors.JaxRuntimeError) or out_of_memory(error):
        return None
    mine, n = jax.process_index(), jax.process_count()
    end = time.monotonic() + _limit + _GRACE
    while time.monotonic() < end:
        try:
            left = _store().key_value_dir_get(_LEFT)
        except Exception:  # the first process keeps the store
            return f"process 0 of {n} has ended, and process {mine} ends too; {_AGAIN}"
        for key, code in left:
            other = key.rpartition("/")[2]
            if other != str(mine):
                return f"process {other} of {n} has ended with exit code {code}, and process {mine} ends too; {_AGAIN}"
        time.sleep(0.1)
    return None


def leave(code: int) -> None:
    """Ends a process that has failed, at once: at the usual end it would wait for the others, and they for it.

    The first one keeps the coordination service, whose end aborts the others: it waits until all of them have ended,
    by an error of their own or because its heartbeat, which stops now, is missing.
    """
    if not _several():
        return
    _leaving.set()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(Exception):
        _store().key_value_set(f"{_LEFT}{jax.process_index()}", str(code), allow_overwrite=True)
        if jax.process_index() == 0:
            end = time.monotonic() + _limit + 2 * _GRACE
            while len(_store().key_value_dir_get(_LEFT)) < jax.process_count() and time.monotonic() < end:
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
        if _leaving.is_set():
            return
        beat += 1
        try:
            client.key_value_set(f"{_HEARTBEAT}{mine}", str(beat), allow_overwrite=True)
            heartbeats = dict(client.key_value_dir_get(_HEARTBEAT))
        except Exception:
            heartbeats = None  # the first process, which keeps the store, is gone; or this one is ending
        now = time.monotonic()
        for other in range(n):
            heartbeat = "" if heartbeats is None else heartbeats.get(f"{_HEARTBEAT}{other}", "")
            if other not in seen or (heartbeat and heartbeat != seen[other][0]):
                seen[other] = (heartbeat, now)
            elif other != mine and seen[other][0] != _ENDED and now - seen[other][1] > timeout:
                sys.stderr.write(
                    f"flowjax: process {other} of {n} has not been heard of for {timeout} s: it is gone, and "
                    f"process {mine} ends too; {_AGAIN}\n"
                )
                sys.stderr.flush()
                if mine == 0:
                    time.sleep(_GRACE)  # it keeps the store: the others are to find out for themselves first
                else:
                    with contextlib.suppress(Exception):
                        client.key_value_set(f"{_LEFT}{mine}", str(LOST), allow_overwrite=True)
                os._exit(LOST)
    with contextlib.suppress(Exception):  # the store may be gone
        client.key_value_set(f"{_HEARTBEAT}{mine}", _ENDED, allow_overwrite=True)
