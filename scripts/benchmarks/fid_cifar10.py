"""FID between CIFAR-10's 50,000 train and 10,000 test images, a known answer: 3.151 with the weights of 2015-12-05.

usage: python scripts/benchmarks/fid_cifar10.py [--npz FILE.npz] [--limit N] [--batch B]

Once with the device's fastest convolutions (`default`: TF32 on a GPU) and once in float32 (`highest`). --npz takes the
arrays x and x_test (N, 32, 32, 3) uint8 from a file, and then needs no TFDS; otherwise the prepared TFDS set is read.
Prints one line of JSON: for each precision the FID, the seconds of the features with and without compilation, and the
seconds of the distance.
"""

import argparse
import json
import time

import jax
import numpy as np

from flowjax.metrics.frechet import between
from flowjax.metrics.inception import Inception, Precision, inception_features, load_inception
from flowjax.metrics.moments import Moments


def read(npz: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Train and test images, uint8."""
    if npz is not None:
        with np.load(npz, allow_pickle=False) as file:
            return file["x"], file["x_test"]
    from flowjax.data import open_dataset  # TFDS and what it needs: not for --npz

    dataset = open_dataset("cifar10")
    return dataset.arrays()[0], dataset.test.astype(np.uint8)


def measure(
    train: np.ndarray, test: np.ndarray, network: Inception, precision: Precision, batch: int
) -> dict[str, float]:
    start = time.perf_counter()
    inception_features(test[:1], batch, network=network, precision=precision)
    compiled = time.perf_counter()
    features = [inception_features(x, batch, network=network, precision=precision) for x in (train, test)]
    extracted = time.perf_counter()
    value = between(*map(Moments.of, features))
    end = time.perf_counter()
    return {
        "fid": value,
        "compile_seconds": round(compiled - start, 2),
        "feature_seconds": round(extracted - compiled, 2),
        "images_per_second": round((len(train) + len(test)) / (extracted - compiled), 1),
        "distance_seconds": round(end - extracted, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npz", help="arrays x and x_test")
    parser.add_argument("--limit", type=int, help="this many images of each split, for a rehearsal")
    parser.add_argument("--batch", type=int, default=0, help="images at a time; 0 for a default")
    parser.add_argument("--weights", help="the .npz of scripts/convert_inception.py; the one in the cache")
    args = parser.parse_args()
    train, test = (x[: args.limit] for x in read(args.npz))
    network = load_inception(args.weights)
    precisions: tuple[Precision, ...] = ("default", "highest")
    record = {
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.local_devices()),
        "jax": jax.__version__,
        "images": [len(train), len(test)],
        **{p: measure(train, test, network, p, args.batch) for p in precisions},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
