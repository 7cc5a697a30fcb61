"""Runs of several processes: how they start, exchange small values, and divide work.

Every process runs the same program over the whole mesh, with its local devices. Only the first one writes files, prints
and plots. Decisions that depend on a clock or on signals are exchanged at the end of every stretch of steps, so that
all processes take the same steps, save at the same step and stop together.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from flowjax.errors import ConfigError
from flowjax.training import heartbeat
from flowjax.typing import PyTree

__all__ = [
    "agree",
    "check_same",
    "check_shared",
    "gathered",
    "in_a_cluster",
    "index_and_count",
    "is_primary",
    "largest",
    "primary_first",
    "process_count",
    "put",
    "share",
    "single_process",
    "slurm_gpus",
    "start",
    "suffix",
    "to_first",
    "wait",
]

T = TypeVar("T")

_SHARED_SECONDS = 40.0  # how long a file may take to appear on a network file system
_CHUNK = 2**28  # bytes gathered at once, of all processes together
_single: ContextVar[bool] = ContextVar("single", default=False)


def start(address: str | None, number: int | None, index: int | None, timeout: int, patience: int = 300) -> None:
    """Connects the processes of a run. A single process skips the initialisation.

    Args:
        address: HOST:PORT of the first process; None to take it from SLURM, a TPU pod or Kubernetes.
        number: number of processes, or None to take it from there.
        index: index of this process, or None to take it from there.
        timeout: seconds without a heartbeat after which a process counts as gone.
        patience: seconds to wait for the other processes. After that time this process writes one line and ends with
            the exit code `heartbeat.LOST`.

    Raises:
        ConfigError: if the host is unknown, or its port is in use on the machine of the first process.
    """
    if number == 1 or not (address or in_a_cluster(os.environ)):
        return
    options: dict[str, Any] = (
        {"cluster_detection_method": "deactivate"} if address else {"local_device_ids": slurm_gpus(os.environ)}
    )
    jax.config.update("jax_enable_preemption_service", False)  # it would replace the handler of SIGTERM
    if address:
        _check_address(address, first=index == 0)
    # JAX may abort after half of its timeout. The heartbeats of this package, whose message is clearer, end earlier.
    options |= {"heartbeat_timeout_seconds": 4 * timeout + 20, "initialization_timeout": patience + 60}
    whom = f"process 0 at {address}" if address and index else "all of the other processes"
    try:
        with heartbeat.deadline(patience, f"could not reach {whom} within {patience} s (--initialization_timeout)"):
            jax.distributed.initialize(address, number, index, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the processes cannot be connected ({reason}); try another --coordinator_address") from error
    if jax.process_count() > 1:
        heartbeat.watch(timeout)


def _check_address(address: str, first: bool) -> None:
    host, _, port = address.rpartition(":")
    try:
        if not first:
            socket.getaddrinfo(host.strip("[]"), int(port))
            return
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        # JAX would share the port with any program that allows sharing, such as another run of several processes
        socket.create_server(("", int(port)), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: empty or too long part of a host name
        reason = getattr(error, "strerror", None) or error
        what = f"port {port} of this machine cannot be used" if first else f"the host {host!r} cannot be found"
        raise ConfigError(f"--coordinator_address {address}: {what} ({reason}); choose another") from None


def in_a_cluster(env: Mapping[str, str]) -> bool:
    """Whether this is one of several processes that JAX can find from the environment.

    Args:
        env: the environment variables. SLURM counts if this is a step of several tasks. FLOWJAX_DISTRIBUTED=1 is for
            clusters without such variables, such as TPU VMs, where JAX finds the processes over the network.
    """
    return (
        ("SLURM_STEP_NODELIST" in env and int(env.get("SLURM_STEP_NUM_TASKS") or 1) > 1)
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
        or ("JOB_COMPLETION_INDEX" in env and importlib.util.find_spec("kubernetes") is not None)
        or env.get("FLOWJAX_DISTRIBUTED") == "1"
    )


def slurm_gpus(env: Mapping[str, str]) -> list[int] | None:
    """All GPUs of a node that has a single SLURM task, for which JAX would use one; otherwise None: JAX decides."""
    if "SLURM_STEP_NODELIST" not in env or not re.fullmatch(r"1(\(x\d+\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")):
        return None
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    n = len(visible.split(",")) if visible else int(env.get("SLURM_GPUS_ON_NODE") or 0)
    return list(range(n)) if n > 1 else None


def is_primary() -> bool:
    """Whether this is the first process, which writes and prints. A single process does not initialise its devices."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def agree(steps: int, signal: int) -> tuple[int, int]:
    """The smallest number of steps and the largest number of a caught signal over all processes, which all call it.

    `multihost_utils.reached_preemption_sync_point` is not used, because its service replaces the handler of SIGTERM and
    ignores Ctrl-C, and because the numbers of steps must be exchanged at the same moment anyway.
    """
    if jax.process_count() == 1:
        return steps, signal
    values = np.asarray(multihost_utils.process_allgather(np.array([steps, signal])))
    return int(values[:, 0].min()), int(values[:, 1].max())


def index_and_count() -> tuple[int, int]:
    """The index of this process and the number of processes; (0, 1) inside `single_process`."""
    return (0, 1) if process_count() == 1 else (jax.process_index(), process_count())


def largest(value: int) -> int:
    """The largest value over all processes, all of which call it; the value itself inside `single_process`."""
    if process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.array(value))))


def check_same(what: str, values: Mapping[str, Any], mend: str = "start all of them with the same") -> None:
    """Raises ConfigError on all processes, with the first key that differs, unless all have the same JSON values.

    The message calls the values `what` and ends with the advice `mend`.
    """
    if process_count() == 1:
        return
    text = json.dumps(values, sort_keys=True).encode()
    mine = np.frombuffer(hashlib.sha256(text).digest()[:8], np.uint32)
    all_ = np.asarray(multihost_utils.process_allgather(mine))
    other = next((i for i, digest in enumerate(all_) if not np.array_equal(digest, all_[0])), None)
    if other is None:
        return
    texts = gathered(np.frombuffer(text + b"\n", np.uint8)).tobytes().splitlines()
    first, its = json.loads(texts[0]), json.loads(texts[other])
    # as text, so that 1 differs from 1.0 and None from a missing key
    shown = lambda values, key: json.dumps(values[key]) if key in values else "missing"
    key = next(k for k in first | its if shown(first, k) != shown(its, k))
    raise ConfigError(
        f"process {other} has another {what} than process 0: {key} is {shown(its, key)} there and {shown(first, key)} "
        f"here; {mend}"
    )


def check_shared(folder: Any) -> None:
    """Raises ConfigError on all processes unless all see a file that the first one writes into the folder."""
    if jax.process_count() == 1:
        return
    number = multihost_utils.broadcast_one_to_all(np.array(time.time_ns() % 2**31, np.int32))
    token = folder / f".shared-{int(number)}"
    if is_primary():
        folder.mkdir(parents=True, exist_ok=True)
        token.write_text("")
    multihost_utils.sync_global_devices("written")
    end = time.monotonic() + _SHARED_SECONDS
    while not token.exists() and time.monotonic() < end:
        time.sleep(1.0)  # network file systems cache the absence of files for a while
    seen = np.asarray(multihost_utils.process_allgather(np.array(token.exists())))
    if is_primary():
        token.unlink(missing_ok=True)
    if not seen.all():
        lost = int(np.argmin(seen))
        raise ConfigError(
            f"process {lost} does not see the files that process 0 writes to {folder}: choose a --workdir that all "
            "processes share"
        )


def put(tree: PyTree, sharding: Sharding) -> PyTree:
    """Places NumPy arrays, equal on all processes, on the mesh: each process copies the parts of its devices."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, lambda i: np.asarray(a)[i]), tree)


def to_first(tree: PyTree, mesh: Mesh) -> PyTree:
    """Gathers sharded arrays as NumPy arrays on the first process, and returns Nones on the others. All call it.

    Arrays are gathered one at a time, so that a device holds at most one whole array. A single process gets its tree.
    """
    if jax.process_count() == 1:
        return tree

    def take(a: jax.Array) -> np.ndarray | None:
        whole = _whole(mesh)(a)
        return np.asarray(whole) if is_primary() else None

    return jax.tree.map(take, tree)


@cache
def _whole(mesh: Mesh) -> Any:
    return jax.jit(lambda a: a, out_shardings=NamedSharding(mesh, P()))


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """For work that one process does while the others wait: it has all rows, and nothing is gathered."""
    token = _single.set(True)
    try:
        yield
    finally:
        _single.reset(token)


def process_count() -> int:
    """The number of processes that divide the work; 1 inside `single_process`."""
    return 1 if _single.get() else jax.process_count()


def suffix() -> str:
    """A suffix for the names of this process's files, such as `.1of4`; empty for a single process."""
    return "" if process_count() == 1 else f".{jax.process_index()}of{process_count()}"


def share(n: int) -> slice:
    """The contiguous slice of n rows that this process works on. The slices of all processes cover each row once."""
    index = 0 if process_count() == 1 else jax.process_index()
    first, last = (n * (index + i) // process_count() for i in range(2))
    return slice(first, last)


def gathered(a: np.ndarray) -> np.ndarray:
    """Concatenates the rows of all processes on each of them. All call it, and may have different numbers of rows."""
    if process_count() == 1:
        return a
    local = np.ascontiguousarray(a).reshape(-1).view(np.uint8)  # bytes, because JAX would convert float64 to float32
    halves = np.asarray(multihost_utils.process_allgather(np.array(divmod(local.size, 2**31), np.uint32)))
    sizes = [int(high) * 2**31 + int(low) for high, low in halves]
    parts: list[list[np.ndarray]] = [[] for _ in sizes]
    chunk = max(1, _CHUNK // process_count())
    for start in range(0, max(sizes), chunk):  # a device holds the pieces of all processes
        piece = local[start : start + chunk]
        longest = min(chunk, max(sizes) - start)
        all_ = np.asarray(multihost_utils.process_allgather(np.pad(piece, (0, longest - piece.size))))
        for part, row, size in zip(parts, all_, sizes, strict=True):
            part.append(row[: max(0, size - start)])
    bytes_ = np.concatenate([piece for part in parts for piece in part])
    return bytes_.view(a.dtype).reshape(-1, *a.shape[1:])


def primary_first(f: Callable[[], T]) -> T:
    """Calls f() on the first process and then on the others, which find the files that the first one has written."""
    if not is_primary():
        wait("first")
    try:
        return f()
    finally:
        if is_primary():
            wait("first")


def wait(name: str) -> None:
    """Waits until all processes have called it with the same name."""
    if process_count() > 1:
        multihost_utils.sync_global_devices(name)
