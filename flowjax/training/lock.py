"""One training at a time in a workdir, and a workdir that can be written, checked before anything is compiled."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from flowjax.errors import RunFault
from flowjax.training import hosts, power_ema
from flowjax.training.writers import WorkdirError, disk_problem, say

NAME = ".lock"
"""The file in the workdir. It stays there: what counts is the lock on it, which the operating system releases."""

_FOLDERS = ("checkpoints", power_ema.FOLDER, "plots", "set_aside")
_FILES = ("config.json", "metrics.jsonl")


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps other trainings out of a workdir until the block is left or this process dies, by any signal.

    All processes of a run call it, and the first one holds the lock. The folder is created if it does not exist; if it
    was created here and is still empty at the end, it is removed.

    Raises:
        WorkdirError: if another process trains in the workdir.
        RunFault: if it cannot be written.
    """
    made, lock, fault = not workdir.exists(), None, None
    try:
        if hosts.leader():
            try:
                lock = _acquire(workdir)
                _probe(workdir)
            except (WorkdirError, RunFault) as error:
                fault = error
        if kind := hosts.largest(0 if fault is None else 1 + isinstance(fault, WorkdirError)):
            raise fault or (RunFault, WorkdirError)[kind - 1](f"process 0 cannot use {workdir}, and says why")
        yield
    finally:
        if lock is not None:
            with lock, contextlib.suppress(OSError):  # the folder may have been moved away meanwhile
                if made and os.listdir(workdir) == [NAME]:
                    (workdir / NAME).unlink()
                    workdir.rmdir()


def _acquire(workdir: Path) -> IO[str]:
    """The file, open and locked, with the owner's name in it."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / NAME).open("a+")
    except OSError as error:
        raise RunFault(f"cannot write to {workdir}: {disk_problem(error)}") from None
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = " ".join(lock.read(200).split()) or "another process"
        lock.close()
        raise WorkdirError(
            f"{workdir} is in use: {owner} trains in it; wait until it ends, or take another --workdir"
        ) from None
    except (ImportError, OSError) as error:  # Windows; some network file systems
        say(
            f"train: warning: {workdir} cannot be locked ({error}): make sure that no other training is started in it "
            "while this one runs"
        )
    try:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            lock.close()
        raise RunFault(f"cannot write to {workdir}: {disk_problem(error)}") from None
    return lock


def _probe(workdir: Path) -> None:
    """RunFault unless a file can be written in the workdir and in those of its folders that exist."""
    for name in _FILES:
        if (workdir / name).is_dir():
            raise RunFault(f"cannot write to {workdir}: {name} is a folder there; move it away")
    for folder in (workdir, *(workdir / name for name in _FOLDERS)):
        if not os.path.lexists(folder):
            continue
        if not folder.is_dir():
            raise RunFault(f"cannot write to {workdir}: {folder.name} is not a folder there; move it away")
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
        except OSError as error:
            raise RunFault(f"cannot write to {folder}: {disk_problem(error)}") from None
