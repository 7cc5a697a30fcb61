"""Prints the names of the experiments, or of the notebooks, that a change needs to have run.

    python scripts/affected.py experiments --since HEAD~1
    python scripts/affected.py notebooks --since HEAD~1

These are the ones with changed files, and three others, which the hash of the commit chooses at random.
"""

import argparse
import random
import subprocess
from pathlib import Path

__all__ = ["chosen", "main"]

_ROOT = Path(__file__).parent.parent / "experiments"
_OTHERS = 3


def chosen(files: dict[str, str], changed: list[str], commit: str) -> list[str]:
    """The names whose files a change touches, and `_OTHERS` others.

    Args:
        files: the start of the paths that belong to each name.
        changed: the paths of changed files.
        commit: the hash of the commit, the seed of the choice of the others.
    """
    touched = [name for name, path in files.items() if any(line.startswith(path) for line in changed)]
    others = [name for name in files if name not in touched]
    return touched + random.Random(commit).sample(others, min(_OTHERS, len(others)))


def _files(kind: str) -> dict[str, str]:
    if kind == "experiments":
        names = [path.parent.relative_to(_ROOT).as_posix() for path in sorted(_ROOT.rglob("experiment.py"))]
        return {name: f"experiments/{name}/" for name in names}
    return {path.stem: f"experiments/notebooks/{path.stem}." for path in sorted(_ROOT.glob("notebooks/[0-9]*.py"))}


def _git(*argv: str) -> str:
    return subprocess.run(["git", *argv], stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["experiments", "notebooks"])
    parser.add_argument("--since", required=True, help="the commit before the change")
    args = parser.parse_args()
    changed = _git("diff", "--name-only", args.since, "HEAD").splitlines()
    print(*chosen(_files(args.kind), changed, _git("rev-parse", "HEAD").strip()))


if __name__ == "__main__":
    main()
