"""Heartbeats between the processes of a run: a process that loses another one ends with one line and exit code 70.

A collective never returns if one of its processes was killed. JAX's coordination service, which runs in the first
process, has heartbeats as well. But JAX 0.10 answers a missing one by aborting the process (SIGABRT, a stack trace of
native code and "another task died") without the name of the lost process, and `jax.distributed.initialize` does not
take the callback with which the native client could change that. The heartbeats of this module name the lost process,
and schedulers retry exit code 70. This module also reports an error that all processes share only once.
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

__all__ = ["LOST", "deadline", "fault_line", "leave", "lost_process", "watch"]

LOST = 70
"""Exit code of a process that has lost another one, EX_SOFTWARE in sysexits.h, which schedulers retry."""

_GRACE = 3.0  # seconds that processes give each other to end
_RESTART = "start all of them again: training resumes from its last checkpoint"
_FAULT = "flowjax/fault"
_LEFT = "flowjax/left/"
_HEARTBEAT = "flowjax/heartbeat/"
_ENDED = "ended"  # the last heartbeat of a process that has done its work

_leaving = threading.Event()
_limit = 0.0  # `timeout` of `watch`


def watch(timeout: int) -> None:
    """Starts to send heartbeats and to watch the heartbeats of the other processes, until this process ends.

    Args:
        timeout: seconds without a heartbeat after which another process counts as gone. Then this process ends with the
            exit code `LOST`.
    """
    global _limit
    _limit = timeout
    ending = threading.Event()
    thread = threading.Thread(target=_beat, args=(timeout, ending), daemon=True)
    thread.start()
    atexit.register(lambda: (ending.set(), thread.join(timeout)))  # before JAX waits for the others


@contextlib.contextmanager
def deadline(seconds: float, complaint: str) -> Iterator[None]:
    """Ends this process with one line and `LOST` if the block takes longer, and immediately on SIGTERM or Ctrl-C.

    It is meant for a call of native code that aborts with a stack trace at its own timeout, and during which Python
    cannot run signal handlers.

    Args:
        seconds: time limit.
        complaint: the line to write if the block takes longer.
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


def fault_line(line: str) -> str | None:
    """The line in which this process reports an error; None if the first process reports the same line.

    A process other than the first puts its index in front of the line.
    """
    if not _several():
        return line
    store = _store()
    if jax.process_index() == 0:
        store.key_value_set(_FAULT, line, allow_overwrite=True)
        return line
    with contextlib.suppress(Exception):  # the first process has no error, or is gone
        if store.blocking_key_value_get(_FAULT, int(1e3 * _GRACE)) == line:
            return None
    return f"process {jax.process_index()} of {jax.process_count()}: {line}"


def lost_process(error: Exception) -> str | None:
    """A line that names the lost process if a collective failed because another process ended; None for other errors.

    The error of the runtime says that a connection was closed, but not why. Therefore the function waits until it is
    known which process has ended: either that process has reported it (`leave`), or its heartbeat is missing and the
    watch ends this process.
    """
    if not _several() or not isinstance(error, jax.errors.JaxRuntimeError) or out_of_memory(error):
        return None
    mine, n = jax.process_index(), jax.process_count()
    end = time.monotonic() + _limit + _GRACE
    while time.monotonic() < end:
        try:
            left = _store().key_value_dir_get(_LEFT)
        except Exception:  # the store is in the first process
            return f"process 0 of {n} has ended, and process {mine} ends too; {_RESTART}"
        for key, code in left:
            other = key.rpartition("/")[2]
            if other != str(mine):
                ended = f"process {other} of {n} has ended with exit code {code}"
                return f"{ended}, and process {mine} ends too; {_RESTART}"
        time.sleep(0.1)
    return None


def leave(code: int) -> None:
    """Ends a failed process immediately. At a normal exit it would wait for the others, and they would wait for it.

    The end of the coordination service, which runs in the first process, aborts the others. Therefore the first process
    waits until they have ended, either with an error or because its heartbeat, which stops now, is missing.

    Args:
        code: the exit code.
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
    """Whether the run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _store() -> Any:
    """The client of the coordination service, which holds keys and values."""
    from jax._src import distributed  # no public function returns the client

    return distributed.global_state.client


def _beat(timeout: int, ending: threading.Event) -> None:
    """Sends heartbeats until `ending` is set. Ends this process if another one has sent none for `timeout` seconds."""
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
            heartbeats = None  # the first process, which has the store, is gone, or this process is ending
        now = time.monotonic()
        for other in range(n):
            heartbeat = "" if heartbeats is None else heartbeats.get(f"{_HEARTBEAT}{other}", "")
            if other not in seen or (heartbeat and heartbeat != seen[other][0]):
                seen[other] = (heartbeat, now)
            elif other != mine and seen[other][0] != _ENDED and now - seen[other][1] > timeout:
                sys.stderr.write(
                    f"flowjax: process {other} of {n} has sent no heartbeat for {timeout} s: it is gone, and "
                    f"process {mine} ends too; {_RESTART}\n"
                )
                sys.stderr.flush()
                if mine == 0:
                    time.sleep(_GRACE)  # without the store, which is here, the others could not name the lost process
                else:
                    with contextlib.suppress(Exception):
                        client.key_value_set(f"{_LEFT}{mine}", str(LOST), allow_overwrite=True)
                os._exit(LOST)
    with contextlib.suppress(Exception):  # the store may be gone
        client.key_value_set(f"{_HEARTBEAT}{mine}", _ENDED, allow_overwrite=True)
