"""The batches and shardings of a prefetcher, and the time it counts as stalled."""

import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from flowjax.batch import Batch
from flowjax.data.dataset import ArrayRows
from flowjax.data.stream import Stream
from flowjax.training.prefetcher import STRETCH, Prefetcher, local_rows
from flowjax.training.sharding import AXES

ROWS = ArrayRows(Batch(np.arange(40, dtype=np.uint8)[:, None], {"label": np.arange(40, dtype=np.int32)}))


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1])


def test_stretches_are_padded_and_split_over_the_mesh(mesh):
    prefetcher = Prefetcher(ROWS, 0, 8, mesh)
    first, second = prefetcher(5, 3), prefetcher(8, STRETCH)
    assert first.x1.shape == (STRETCH, 8, 1)
    assert first.x1.sharding.spec == P(None, ("data", "fsdp"))
    expected = [Stream(ROWS, 0, 8)[5 + i].cond["label"] for i in range(3 + STRETCH)]
    np.testing.assert_array_equal(first.cond["label"][:3], expected[:3])
    np.testing.assert_array_equal(second.cond["label"], expected[3:])
    np.testing.assert_array_equal(first.x1[3:, :, 0], np.tile(expected[2], (STRETCH - 3, 1)))
    np.testing.assert_array_equal(
        prefetcher(0, 1).cond["label"][0], Stream(ROWS, 0, 8)[0].cond["label"]
    )  # a jump back to the start
    prefetcher.close()


class Gated:
    """Rows that can be read only after the gate is opened; row 7 cannot be read at all."""

    def __init__(self):
        self.gate = threading.Event()

    def __len__(self):
        return 40

    def __getitem__(self, index):
        assert self.gate.wait(60)
        if index == 7:
            raise OSError("row 7")
        return ROWS[index]


def without_row_7(stream, batches):
    """The first of `batches` consecutive steps whose rows can all be read."""
    bad = [7 in stream[step].cond["label"] for step in range(80)]
    return next(s for s in range(80) if not any(bad[s : s + batches]))


def test_what_was_begun_is_read_while_the_devices_work(mesh):
    rows = Gated()
    prefetcher, plain = Prefetcher(rows, 0, 2, mesh), Stream(ROWS, 0, 2)
    step = without_row_7(plain, 12)  # threads read ahead
    prefetcher.start(step, 2)
    assert not rows.gate.is_set()  # `start` does not wait
    began = time.perf_counter()
    threading.Timer(0.05, rows.gate.set).start()
    batches = prefetcher(step, 2)
    assert 0 < prefetcher.stalled < time.perf_counter() - began
    np.testing.assert_array_equal(batches.cond["label"][:2], [plain[step].cond["label"], plain[step + 1].cond["label"]])
    stalled = prefetcher.stalled
    prefetcher(step + 2, 1)
    assert prefetcher.stalled == stalled  # reads without `start` do not count
    prefetcher.close()


def test_what_was_begun_and_is_not_wanted_is_left(mesh):
    prefetcher = Prefetcher(ROWS, 0, 8, mesh)
    prefetcher.start(0, 2)
    np.testing.assert_array_equal(prefetcher(5, 1).cond["label"][0], Stream(ROWS, 0, 8)[5].cond["label"])
    prefetcher.start(6, 2)
    prefetcher.close()
    np.testing.assert_array_equal(prefetcher(6, 1).cond["label"][0], Stream(ROWS, 0, 8)[6].cond["label"])
    prefetcher.close()


def test_closing_waits_for_a_batch_not_for_all(mesh):
    """A pending read ends after the current batch, and the stream starts again at the next step that is requested."""
    read = []

    class Slow(Gated):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    rows = Slow()
    prefetcher = Prefetcher(rows, 0, 2, mesh)
    step = without_row_7(Stream(ROWS, 0, 2), 12)
    prefetcher.start(step, STRETCH)
    threading.Thread(target=lambda: prefetcher._closing.wait(60) and rows.gate.set()).start()
    prefetcher.close()
    assert len(read) < 2 * STRETCH
    np.testing.assert_array_equal(prefetcher(step, 1).cond["label"][0], Stream(ROWS, 0, 2)[step].cond["label"])
    prefetcher.close()


def test_an_error_of_reading_comes_with_the_call(mesh):
    rows = Gated()
    rows.gate.set()
    prefetcher = Prefetcher(rows, 0, 40, mesh)
    prefetcher.start(0, 1)
    with pytest.raises(OSError, match="row 7"):
        prefetcher(0, 1)
    prefetcher.close()


def test_a_process_alone_reads_whole_batches(mesh):
    assert local_rows(Prefetcher(ROWS, 0, 8, mesh)._sharding, 8) == (0, 8)
