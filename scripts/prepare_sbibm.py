"""Writes the reference posteriors of the benchmark of simulation-based inference into the cache folder.

usage: python scripts/prepare_sbibm.py

The package sbibm 1.1.0 (MIT license) contains them. pip downloads its wheel, which is not installed. For each of eight
tasks, sbibm/TASK.npz receives the arrays observation (10, F), true_parameters (10, D) and reference (10, 10000, D).
`flowjax evaluate --metrics c2st` and `flowjax reproduce inference` read them. The cache folder is FLOWJAX_CACHE, or
~/.cache/flowjax.
"""

import bz2
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from flowjax import archives
from flowjax.inference.reference_posteriors import path_of
from flowjax.simulators import BENCHMARK


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, "sbibm==1.1.0"]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as file:
            for task in BENCHMARK:
                at = [f"sbibm/tasks/{task}/files/num_observation_{i}/" for i in range(1, 11)]
                arrays = {
                    "observation": np.concatenate([table(file, f"{one}observation.csv") for one in at]),
                    "true_parameters": np.concatenate([table(file, f"{one}true_parameters.csv") for one in at]),
                    "reference": np.stack([table(file, f"{one}reference_posterior_samples.csv.bz2") for one in at]),
                }
                archives.write_npz(path_of(task), arrays)
                print(f"{task}: {path_of(task)}")


def table(file: zipfile.ZipFile, name: str) -> np.ndarray:
    text = bz2.decompress(file.read(name)) if name.endswith("bz2") else file.read(name)
    return np.loadtxt(io.BytesIO(text), delimiter=",", skiprows=1, ndmin=2).astype(np.float32)


if __name__ == "__main__":
    main()
