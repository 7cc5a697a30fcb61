"""What the checksums of a checkpoint cost: seconds to save and to open a state of 500 MB, with and without them.

.venv/bin/python scripts/benchmarks/checkpoints.py [FOLDER]

A state of random numbers, which do not compress, is saved in FOLDER (a temporary folder by default). `save` is what
training waits for: the call, and the wait until all is on the disk, as at the end of a run. `open` reads the state
again. The kinds are taken in turns, and the least times are printed, since others may use the machine; so are the
processor's seconds, of all threads. The shares are what the checksums add.

Measured twice on a quiet host with 16 cores, on its disk: the call of save -3% and +8% (a noise of 3 ms), save and
wait +2% and +5%, open +7% and +10%. In memory (/dev/shm), where nothing hides them: save and wait +13% and +17%.
"""

import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from flowjax import checksums
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.state import TrainState

ROUNDS = 7


def state(megabytes: int) -> TrainState:
    """Parameters, their average and Adam's two moments, each of 64 arrays of one size."""
    rng, size = np.random.default_rng(0), megabytes * 10**6 // (4 * 4 * 64)
    tree = lambda: {f"{i:02d}": jax.numpy.asarray(rng.standard_normal(size, np.float32)) for i in range(64)}
    return TrainState(jax.numpy.zeros((), np.int32), tree(), {}, (tree(), tree()), tree(), (), {}, jax.random.key(0))


def now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def once(saved: TrainState, folder: Path) -> np.ndarray:
    """Seconds, and the processor's, of the call, of the call and the wait, and of opening: (3, 2)."""
    checkpoints = Checkpoints(folder)
    saver = checkpoints.saver(1, 0)
    start = now()
    saver.save(saved, 1.0)
    called = now() - start
    saver.wait()
    waited = now() - start
    saver.close()
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), saved)
    start = now()
    checkpoints.restore(0, like)
    return np.stack([called, waited, now() - start])


def main() -> None:
    saved = state(500)
    times: dict[str, list[np.ndarray]] = {"without": [], "with": []}
    for _ in range(ROUNDS + 1):
        for kind, found in times.items():
            with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
                if kind == "with":
                    found.append(once(saved, Path(folder)))
                else:
                    with mock.patch.object(checksums, "write"), mock.patch.object(checksums, "read", return_value=None):
                        found.append(once(saved, Path(folder)))
    without, with_ = (np.min(found[1:], 0) for found in times.values())  # the first round warms up
    for i, name in enumerate(("call of save", "save and wait", "open")):
        for j, clock in enumerate(("seconds", "of the processor")):
            a, b = without[i, j], with_[i, j]
            print(f"{name:<14} {a:6.3f} without, {b:6.3f} with: {b / a - 1:+6.1%} {clock}")


if __name__ == "__main__":
    main()
