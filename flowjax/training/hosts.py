"""Several processes as one run: how they start, agree, and notice that one of them is gone.

Every process runs the same program over the whole mesh, each with its own devices. Only the first one writes, prints
and draws. What each decides from its own clock or signals is agreed upon at the end of every stretch, so that all of
them take the same steps, save at the same one and stop together. JAX's coordination service carries the start and a
pulse of each process: a collective waits for ever for a process that was killed, so whoever misses a pulse ends.
"""

import hashlib
import os
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flowjax.config import ConfigError
from flowjax.typing import PyTree

LOST = 70
"""Exit code of a process that has lost another: that of an internal error in sysexits.h, which schedulers retry."""


def start(address: str | None, number: int | None, index: int | None, timeout: int) -> None:
    """Joins the other processes, if there are any: as told, or as SLURM, a TPU pod or Kubernetes say.

    Args:
        address: HOST:PORT of the first process, or None to find out.
        number, index: of processes, and which this one is.
        timeout: seconds without a pulse after which a process counts as gone.
    """
    if address is None and not _in_a_cluster():
        return
    jax.distributed.initialize(address, number, index, heartbeat_timeout_seconds=2 * timeout)
    if jax.process_count() > 1:
        threading.Thread(target=_watch, args=(timeout,), daemon=True).start()


def _in_a_cluster() -> bool:
    """Whether the environment is that of one of several processes that JAX can find by itself."""
    count = lambda name: os.environ.get(name, "1").strip() or "1"
    return (
        (count("SLURM_NTASKS").isdigit() and int(count("SLURM_NTASKS")) > 1 and "SLURM_PROCID" in os.environ)
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
        or ("KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ)
    )


def leader() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def agree(steps: int, signal: int) -> tuple[int, int]:
    """The fewest steps that any process wants to take next, and the signal that any of them has caught."""
    if jax.process_count() == 1:
        return steps, signal
    asked = np.asarray(multihost_utils.process_allgather(np.array([steps, signal])))
    return int(asked[:, 0].min()), int(asked[:, 1].max())


def check_same(what: str, text: str) -> None:
    """ConfigError on all processes unless the text is the same on all."""
    if jax.process_count() == 1:
        return
    mine = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], np.uint32)
    all_ = np.asarray(multihost_utils.process_allgather(mine))
    other = [i for i, digest in enumerate(all_) if not np.array_equal(digest, all_[0])]
    if other:
        raise ConfigError(f"process {other[0]} has another {what} than process 0: start all of them with the same")


def check_shared(folder: Any) -> None:
    """ConfigError on all processes unless what the first one writes into the folder is seen by all."""
    if jax.process_count() == 1:
        return
    token = folder / f".shared-{os.environ.get('SLURM_JOB_ID', '')}"
    if leader():
        folder.mkdir(parents=True, exist_ok=True)
        token.write_text("")
    multihost_utils.sync_global_devices("written")
    seen = np.asarray(multihost_utils.process_allgather(np.array(token.exists())))
    if leader():
        token.unlink(missing_ok=True)
    if not seen.all():
        lost = int(np.argmin(seen))
        raise ConfigError(f"process {lost} does not see what process 0 writes to {folder}: take a shared --workdir")


def local(tree: PyTree, mesh: Mesh) -> PyTree:
    """The whole tree on this process's first device, for work that it does alone. All processes have to call it."""
    if jax.process_count() == 1:
        return tree
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(tree)
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), whole)


def leave(code: int) -> None:
    """Ends a process that has failed at once: the others would wait for it at the usual end."""
    if jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(timeout: int) -> None:
    """Beats, and ends this process once another has not beaten for `timeout` seconds."""
    from jax._src import distributed  # the only way to the store of keys that JAX opens anyway

    client: Any = distributed.global_state.client
    mine, n = jax.process_index(), jax.process_count()
    seen: dict[int, tuple[str, float]] = {}
    beat = 0
    while True:
        beat += 1
        try:
            client.key_value_set(f"flowjax/pulse/{mine}", str(beat), allow_overwrite=True)
            pulses = dict(client.key_value_dir_get("flowjax/pulse/"))
        except Exception:
            pulses = None  # the first process, which keeps the store, is gone; or this one is ending
        now = time.monotonic()
        for other in range(n):
            pulse = "" if pulses is None else pulses.get(f"flowjax/pulse/{other}", "")
            if other not in seen or (pulse and pulse != seen[other][0]):
                seen[other] = (pulse, now)
            elif other != mine and now - seen[other][1] > timeout:
                sys.stderr.write(
                    f"flowjax: train: process {other} of {n} has not been heard of for {timeout} s: it is gone, and "
                    f"process {mine} ends too; the same command resumes from the last checkpoint\n"
                )
                sys.stderr.flush()
                os._exit(LOST)
        time.sleep(min(1.0, timeout / 4))
