"""Runs the quick forms of experiments, one after the other.

    python scripts/reproduce_all.py                                  # all
    python scripts/reproduce_all.py gaussians8 minibatch_ot --minutes 8

No further experiment is started after --minutes. An experiment fails if its command fails, or if a value differs from
the expected one. One whose data are not prepared is skipped.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

from flowjax.reproduce.shipped import load_experiment, missing, shipped_experiments


def run(name: str) -> str:
    """Runs one quick form, and returns what is wrong with it, or an empty text."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "flowjax", "reproduce", name, "--quick", "--out", out]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr[-300:].strip()}"
    return "; ".join(json.loads(done.stdout)["deviations"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="experiments; all by default")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    args = parser.parse_args()
    folders = shipped_experiments()
    names = args.names or list(folders)
    if unknown := [name for name in names if name not in folders]:
        parser.error(f"no experiment {', '.join(unknown)}; there are {', '.join(folders)}")
    start, failed = time.perf_counter(), 0
    for i, name in enumerate(names):
        if time.perf_counter() - start > 60 * args.minutes:
            print(f"not run, as {args.minutes:g} minutes are over: {', '.join(names[i:])}")
            break
        if (what := missing(load_experiment(folders[name]).quick)) is not None:
            print(f"{name:<32}  skipped: {what}", flush=True)
            continue
        began = time.perf_counter()
        wrong = run(name)
        failed += bool(wrong)
        print(f"{name:<32} {time.perf_counter() - began:6.1f} s  {wrong or 'as expected'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
