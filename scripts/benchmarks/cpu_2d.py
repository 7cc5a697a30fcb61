"""flowjax against PyTorch on the 2D tutorials, on one CPU core, in one run, alternating.

    python -m venv .bench && .bench/bin/pip install --no-deps -r scripts/benchmarks/requirements.txt
    .venv/bin/python scripts/benchmarks/cpu_2d.py --torch .bench/bin/python

Both workers are pinned to the same core and one thread, and take turns; the table gives medians of counts per
CPU-second and the median of the ratios of neighbouring turns, with their range. Load on the machine moves both sides
of a ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TASKS = {
    "icfm": "I-CFM as shipped, steps",
    "icfm_pooled": "I-CFM, pooled data, steps",
    "otcfm": "OT-CFM, exact, steps",
    "flow_matching": "flow_matching, steps",
    "sample": "dopri5, points",
}


class Worker:
    """A process that answers one line a request."""

    def __init__(self, python: str, script: str, core: int, weights: str):
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        self._process = subprocess.Popen(
            [python, str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | one | {"BENCH_WEIGHTS": weights, "JAX_PLATFORMS": "cpu"},
        )
        os.sched_setaffinity(self._process.pid, {core})

    def rate(self, task: str, seconds: float) -> float:
        """Counts per CPU-second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"task": task, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["count"] / answer["cpu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", required=True, help="Python of the environment with requirements.txt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--tasks", default=",".join(TASKS))
    args = parser.parse_args()
    core = sorted(os.sched_getaffinity(0))[0]
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.npz"
        subprocess.run([sys.executable, str(HERE / "jax_worker.py"), "--weights", weights], check=True)
        ours = Worker(sys.executable, "jax_worker.py", core, weights)
        theirs = Worker(args.torch, "torch_worker.py", core, weights)
        print(f"{'per CPU-second of one thread':<28}{'PyTorch':>10}{'flowjax':>10}{'ratio':>8}   range")
        for task in args.tasks.split(","):
            for worker in (ours, theirs):
                worker.rate(task, 0.5)
            pairs = [(theirs.rate(task, args.seconds), ours.rate(task, args.seconds)) for _ in range(args.rounds)]
            ratios = sorted(b / a for a, b in pairs)
            torch, jax = (statistics.median(side) for side in zip(*pairs, strict=True))
            middle = statistics.median(ratios)
            print(
                f"{TASKS[task]:<28}{torch:>10.4g}{jax:>10.4g}{middle:>8.2f}   {ratios[0]:.2f} to {ratios[-1]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
