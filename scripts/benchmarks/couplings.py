"""What exact minibatch optimal transport costs: milliseconds of CPU for one batch, 8 Gaussians from a normal.

.venv/bin/python scripts/benchmarks/couplings.py
"""

import time

import jax

from flowjax.couplings import MinibatchOT
from flowjax.data import open_dataset


def main() -> None:
    dataset = open_dataset("gaussians8")
    assert dataset.draw is not None
    coupling = jax.jit(MinibatchOT())
    for batch in (128, 256, 512, 1024):
        pairs = [
            (jax.random.normal(jax.random.key(i), (batch, 2)), dataset.draw(jax.random.key(100 + i), batch))
            for i in range(5)
        ]
        coupling(None, *pairs[0]).block_until_ready()
        start = time.process_time()
        for x0, x1 in pairs:
            coupling(None, x0, x1).block_until_ready()
        print(f"batch {batch:>5}: {(time.process_time() - start) / len(pairs) * 1e3:8.2f} ms")


if __name__ == "__main__":
    main()
