"""Runs the quick forms of experiments, one after the other: all of them, or those that a change needs.

    python scripts/reproduce_all.py                                  # all
    python scripts/reproduce_all.py --changed_since HEAD~1 --minutes 12

With --changed_since, experiments with changed files come first, and three others follow in turn: the number of commits
chooses them, so that successive changes cover all. No further experiment is started after --minutes. An experiment
fails if its command fails, or if a value differs from the expected one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flowjax.reproduce.shipped import load_experiment, missing, shipped_experiments

ROOT = Path(__file__).parent.parent
IN_TURN = 3


def git(*argv: str) -> str:
    return subprocess.run(["git", *argv], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def chosen(names: list[str], folders: list[str], since: str) -> list[str]:
    """The names whose folder or file a change touches, and three others in turn.

    Args:
        names: of experiments or notebooks.
        folders: the path in the repository that belongs to each name.
        since: the commit before the change.
    """
    changed = git("diff", "--name-only", since, "--").splitlines()
    touched = [n for n, path in zip(names, folders, strict=True) if any(line.startswith(path) for line in changed)]
    others = [name for name in names if name not in touched]
    start = int(git("rev-list", "--count", "HEAD")) * IN_TURN
    turn = [others[(start + i) % len(others)] for i in range(min(IN_TURN, len(others)))]
    return touched + turn


def run(name: str) -> str:
    """Runs one quick form, and returns what is wrong with it, or an empty text."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "flowjax", "reproduce", name, "--quick", "--out", out]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return f"exit code {done.returncode}"
    return "; ".join(json.loads(done.stdout)["deviations"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="experiments; all by default")
    parser.add_argument("--changed_since", help="a commit")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    args = parser.parse_args()
    folders = shipped_experiments()
    names = args.names or list(folders)
    if args.changed_since:
        names = chosen(names, [f"experiments/{name}/" for name in names], args.changed_since)
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
