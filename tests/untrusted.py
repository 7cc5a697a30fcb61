"""Damaged copies of files for the tests of readers: whatever is in a file, it is read or refused in one line."""

import contextlib
import tracemalloc

import numpy as np
import pytest


@contextlib.contextmanager
def memory_below(mebibytes: int):
    """What is allocated inside at any moment is below the bound; NumPy's arrays count too."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes * 2**20
    finally:
        tracemalloc.stop()


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """One of five kinds of damage at random places: flipped bits, new bytes, a cut, a repetition, a part of zeros."""
    data = bytearray(whole)
    kind = rng.integers(5)
    a, b = sorted(int(n) for n in rng.integers(0, len(data), 2))
    if kind == 0:
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        for place in rng.integers(0, len(data), rng.integers(1, 9)):
            data[place] = int(rng.integers(256))
    elif kind == 2:
        del data[a:]
    elif kind == 3:
        data[a:a] = data[a : min(b, a + 64)]
    else:
        data[a : min(b, a + 64)] = bytes(min(b, a + 64) - a)
    return bytes(data)


def assert_read_or_refused(path, whole, read, errors, cases, seed=0):
    """Reads damaged copies; returns how many were refused."""
    rng, refused = np.random.default_rng(seed), 0
    for case in range(cases):
        path.write_bytes(damaged(whole, rng))
        try:
            read(path)
        except errors as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 1500:
                pytest.fail(f"case {case} of seed {seed} is not one line: {error}")
        except BaseException as error:
            pytest.fail(f"case {case} of seed {seed}: {type(error).__name__}: {error}")
    return refused
