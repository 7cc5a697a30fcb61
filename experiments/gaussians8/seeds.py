"""The main job with several seeds: trains, evaluates and tabulates.

    .venv/bin/python experiments/gaussians8/seeds.py --workdir runs/g8_seeds [--seeds 3] [--config gaussians8]

Every figure of README.md beside this file comes from here.
"""

import argparse
import json
import subprocess
import sys
import time

COLUMNS = ("kl", "kl_stderr", "nll", "w2_squared", "w2_squared_true", "mmd", "npe", "mode_share_min", "mode_share_max")


def flowjax(*argv: str) -> dict[str, float]:
    """One command; its JSON line."""
    done = subprocess.run([sys.executable, "-m", "flowjax", *argv], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default="gaussians8")
    args = parser.parse_args()
    print("| seed | " + " | ".join(COLUMNS) + " | train s | all s |")
    print("|---|" + "---|" * (len(COLUMNS) + 2))
    for seed in range(args.seeds):
        workdir, start = f"{args.workdir}/{seed}", time.perf_counter()
        flowjax("train", f"--config={args.config}", f"--workdir={workdir}", f"--config.seed={seed}")
        trained = time.perf_counter() - start
        flowjax("sample", f"--workdir={workdir}", "--num=50000", f"--out={workdir}/samples.npz")
        result = flowjax("evaluate", f"--workdir={workdir}")
        cells = [f"{result[c]:.4f}" if c in result else "" for c in COLUMNS]
        seconds = time.perf_counter() - start
        print(f"| {seed} | " + " | ".join(cells) + f" | {trained:.1f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
