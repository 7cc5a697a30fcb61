"""Several processes as one run: how they start, agree, and share what there is to do.

Every process runs the same program over the whole mesh, each with its own devices. Only the first one writes, prints
and draws. What each decides from its own clock or signals is agreed upon at the end of every stretch, so that all of
them take the same steps, save at the same one and stop together.
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
    "alone",
    "check_same",
    "check_shared",
    "first_alone",
    "gathered",
    "in_a_cluster",
    "is_primary",
    "largest",
    "own_gpus",
    "place",
    "process_count",
    "put",
    "share",
    "start",
    "suffix",
    "to_first",
    "wait",
]

T = TypeVar("T")

_SHARED_SECONDS = 40.0
_CHUNK = 2**28  # bytes, of all processes together, that are gathered at once
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def start(address: str | None, number: int | None, index: int | None, timeout: int, patience: int = 300) -> None:
    """Joins the other processes, if there are any: as given here, or as SLURM, a TPU pod or Kubernetes say.

    Args:
        address: HOST:PORT of the first process, or None to find out.
        number, index: how many processes there are, and which this one is. A single process skips all of this.
        timeout: seconds without a heartbeat after which a process counts as gone.
        patience: seconds to wait for the others. If they have not all come by then, this process writes one line and
            ends with `heartbeat.LOST`.

    Raises:
        ConfigError: if the address is unknown, or its port is in use on the machine of the first process.
    """
    if number == 1 or not (address or in_a_cluster(os.environ)):
        return
    told: dict[str, Any] = (
        {"cluster_detection_method": "deactivate"} if address else {"local_device_ids": own_gpus(os.environ)}
    )
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    if address:
        _check_address(address, first=index == 0)
    # JAX aborts from half its own limit on, since its tasks beat twice in it: ours, which says what to do, comes first
    told |= {"heartbeat_timeout_seconds": 4 * timeout + 20, "initialization_timeout": patience + 60}
    whom = f"process 0 at {address}" if address and index else "all of the other processes"
    try:
        with heartbeat.deadline(patience, f"could not reach {whom} within {patience} s (--initialization_timeout)"):
            jax.distributed.initialize(address, number, index, **told)
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
        # JAX would share the port with another program that allows that, such as another run of several processes
        socket.create_server(("", int(port)), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: a host name with an empty or a long label
        reason = getattr(error, "strerror", None) or error
        what = f"port {port} of this machine cannot be used" if first else f"the host {host!r} cannot be found"
        raise ConfigError(f"--coordinator_address {address}: {what} ({reason}); take another") from None


def in_a_cluster(env: Mapping[str, str]) -> bool:
    """Whether the environment is that of one of several processes that JAX can find by itself.

    Of SLURM: a step of several tasks, not a command beside one. FLOWJAX_DISTRIBUTED=1 says so where nothing else does,
    as on TPU VMs, which JAX asks over the network.
    """
    return (
        ("SLURM_STEP_NODELIST" in env and int(env.get("SLURM_STEP_NUM_TASKS") or 1) > 1)
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
        or ("JOB_COMPLETION_INDEX" in env and importlib.util.find_spec("kubernetes") is not None)
        or env.get("FLOWJAX_DISTRIBUTED") == "1"
    )


def own_gpus(env: Mapping[str, str]) -> list[int] | None:
    """All GPUs of a node for its only SLURM task, where JAX would take one a task; None to let JAX decide."""
    if "SLURM_STEP_NODELIST" not in env or not re.fullmatch(r"1(\(x\d+\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")):
        return None
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    n = len(visible.split(",")) if visible else int(env.get("SLURM_GPUS_ON_NODE") or 0)
    return list(range(n)) if n > 1 else None


def is_primary() -> bool:
    """Whether this process writes and prints. The call does not initialise the devices of a single process."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def agree(steps: int, signal: int) -> tuple[int, int]:
    """The fewest steps that any process wants to take next, and the signal that any of them has caught.

    Not `multihost_utils.reached_preemption_sync_point`: its service takes over SIGTERM and does not know Ctrl-C, and
    the number of steps needs an exchange at the same moment anyway.
    """
    if jax.process_count() == 1:
        return steps, signal
    asked = np.asarray(multihost_utils.process_allgather(np.array([steps, signal])))
    return int(asked[:, 0].min()), int(asked[:, 1].max())


def place() -> tuple[int, int]:
    """The index of this process among those that share the work at hand, and their number."""
    return (0, 1) if process_count() == 1 else (jax.process_index(), process_count())


def largest(value: int) -> int:
    """The largest of the values of the processes that share the work at hand; all of them call it."""
    if process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.array(value))))


def check_same(what: str, values: Mapping[str, Any], mend: str = "start all of them with the same") -> None:
    """ConfigError on all processes unless all have the same values, which JSON can hold; it names one that differs."""
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
    told = lambda values, key: json.dumps(values[key]) if key in values else "missing"  # 1 is not 1.0, nor None nothing
    key = next(k for k in first | its if told(first, k) != told(its, k))
    raise ConfigError(
        f"process {other} has another {what} than process 0: {key} is {told(its, key)} there and {told(first, key)} "
        f"here; {mend}"
    )


def check_shared(folder: Any) -> None:
    """ConfigError on all processes unless what the first one writes into the folder is seen by all."""
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
        time.sleep(1.0)  # network file systems remember for a while what was not there
    seen = np.asarray(multihost_utils.process_allgather(np.array(token.exists())))
    if is_primary():
        token.unlink(missing_ok=True)
    if not seen.all():
        lost = int(np.argmin(seen))
        raise ConfigError(f"process {lost} does not see what process 0 writes to {folder}: take a shared --workdir")


def put(tree: PyTree, sharding: Sharding) -> PyTree:
    """NumPy arrays that all processes have, placed on the mesh: each puts what its devices hold."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, lambda i: np.asarray(a)[i]), tree)


def to_first(tree: PyTree, mesh: Mesh) -> PyTree:
    """Of several processes, the whole tree for the first one, as NumPy; None's for the others. All of them call it.

    One array after the other: a device holds no more than one that is whole.
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
def alone() -> Iterator[None]:
    """For work that one process does while the others do not: its rows are all rows, and nothing is gathered."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def process_count() -> int:
    """How many processes share the rows of what is sampled and scored; 1 inside `alone`."""
    return 1 if _alone.get() else jax.process_count()


def suffix() -> str:
    """What tells this process's own files from the others': nothing for one alone, or `.1of4`."""
    return "" if process_count() == 1 else f".{jax.process_index()}of{process_count()}"


def share(n: int) -> slice:
    """Which of n rows this process takes: side by side, and each row is taken once."""
    index = 0 if process_count() == 1 else jax.process_index()
    first, last = (n * (index + i) // process_count() for i in range(2))
    return slice(first, last)


def gathered(a: np.ndarray) -> np.ndarray:
    """The rows of all processes in their order, on each; they may be differently many. All processes call it."""
    if process_count() == 1:
        return a
    own = np.ascontiguousarray(a).reshape(-1).view(np.uint8)  # bytes: JAX would make float64 float32
    told = np.asarray(multihost_utils.process_allgather(np.array(divmod(own.size, 2**31), np.uint32)))
    sizes = [int(high) * 2**31 + int(low) for high, low in told]
    parts: list[list[np.ndarray]] = [[] for _ in sizes]
    chunk = max(1, _CHUNK // process_count())
    for start in range(0, max(sizes), chunk):  # each device holds the pieces of all
        piece = own[start : start + chunk]
        longest = min(chunk, max(sizes) - start)
        all_ = np.asarray(multihost_utils.process_allgather(np.pad(piece, (0, longest - piece.size))))
        for part, row, size in zip(parts, all_, sizes, strict=True):
            part.append(row[: max(0, size - start)])
    bytes_ = np.concatenate([piece for part in parts for piece in part])
    return bytes_.view(a.dtype).reshape(-1, *a.shape[1:])


def first_alone(f: Callable[[], T]) -> T:
    """f() of the first process, and then of the others: what it has written, they find."""
    if not is_primary():
        wait("first")
    try:
        return f()
    finally:
        if is_primary():
            wait("first")


def wait(name: str) -> None:
    """Waits until all processes have called it."""
    if process_count() > 1:
        multihost_utils.sync_global_devices(name)
