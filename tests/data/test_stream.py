"""Streams of batches: their order, where they start, and who reads what."""

import multiprocessing
import os
import signal

import numpy as np
import pytest

from flowjax.batch import Batch
from flowjax.data.dataset import ArrayRows
from flowjax.data.stream import Stream

ROWS = ArrayRows(Batch(np.arange(50, dtype=np.uint8)[:, None], {"label": np.arange(50, dtype=np.int32)}))


def labels(batches):
    return np.concatenate([batch.cond["label"] for batch in batches])


def test_every_epoch_is_another_order_of_all_rows():
    stream = Stream(ROWS, 3, 20)
    seen = labels(stream[i] for i in range(5))  # two epochs
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert not np.array_equal(seen[:50], seen[50:])
    assert not np.array_equal(seen[:50], np.arange(50))
    assert not np.array_equal(seen, labels(Stream(ROWS, 4, 20)[i] for i in range(5)))


@pytest.mark.parametrize("workers", [0, 2])
def test_it_starts_anywhere_in_the_same_order(workers):
    stream = Stream(ROWS, 0, 8)
    going = stream.start(4, workers)
    for step in range(4, 18):
        if step == 6:  # Ctrl-C in a terminal goes to all processes: it is for the parent to act on
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGINT)
        batch = next(going)
        np.testing.assert_array_equal(batch.cond["label"], stream[step].cond["label"])
        np.testing.assert_array_equal(batch.x1[:, 0], batch.cond["label"])
    going.close()


def test_processes_read_their_rows_of_the_same_batches():
    """Whatever their number: their parts side by side are the batch of one process."""
    whole = Stream(ROWS, 0, 12)
    parts = [Stream(ROWS, 0, 12, (4 * i, 4 * i + 4)) for i in range(3)]
    for step in (0, 7):
        np.testing.assert_array_equal(labels(part[step] for part in parts), whole[step].cond["label"])


def test_batches_of_one_row():
    one, all_rows = Stream(ROWS, 1, 1), Stream(ROWS, 1, len(ROWS))
    np.testing.assert_array_equal([int(one[i].cond["label"][0]) for i in range(len(ROWS))], all_rows[0].cond["label"])
    going = one.start(2)
    np.testing.assert_array_equal(next(going).cond["label"], one[2].cond["label"])
    going.close()


def test_rows_without_labels():
    assert Stream(ArrayRows(Batch(np.zeros((4, 2), np.float32))), 0, 2)[1].cond is None
