"""Arrays of the user on the disk, as data sets read them."""

import shutil

import numpy as np


def store(folder, kind="npz", **arrays):
    """Writes arrays as .npz, .npy or Zarr into a new folder; returns the value of data.path."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if kind == "npz":
        np.savez(folder / "a.npz", **arrays)
        return str(folder / "a.npz")
    for name, array in arrays.items():
        if kind == "npy":
            np.save(folder / f"{name}.npy", array)
        else:
            import tensorstore as ts

            where = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / name)}}
            ts.open(where, create=True, dtype=array.dtype, shape=array.shape).result().write(array).result()
    return str(folder)
