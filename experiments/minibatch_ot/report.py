"""The table and the figure of what `table.py` wrote.

    python experiments/minibatch_ot/report.py --out experiments/minibatch_ot/results

prints the table as Markdown and draws minibatch_ot.png beside --out, where the samples are there too.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("agg")
import matplotlib.pyplot as plt

NAMES = {"i_cfm": "I-CFM", "ot_cfm": "OT-CFM", "sb_cfm": "SB-CFM", "fm": "FM"}


def cell(records, key):
    values = np.array([r[key] for r in records])
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def table(results):
    print("| pair | method | W2² | W2 | floor of W2² | NPE |\n|---|---|---|---|---|---|")
    groups = defaultdict(dict)
    for method, result in results.items():
        for r in result["records"]:
            groups[r["source"], r["target"]].setdefault(method, []).append(r)
    for (source, target), methods in groups.items():
        for method, records in methods.items():
            shown = " | ".join(cell(records, key) for key in ("w2_squared", "w2"))
            floor = records[0]["w2_squared_floor"]
            print(f"| {source} → {target} | {NAMES[method]} | {shown} | {floor:.3f} | {cell(records, 'npe')} |")


def figure(results, out):
    pairs = ["normal → gaussians8", "moons → gaussians8", "normal → moons", "normal → s_curve"]
    fig, axes = plt.subplots(len(NAMES), 4, figsize=(9, 9), sharex="col", sharey="col")
    for row, (method, name) in enumerate(NAMES.items()):
        samples = np.load(out / f"{method}.npz")["samples"].astype(np.float32)
        columns = [0, 2, 3] if method == "fm" else range(4)
        for axis in axes[row]:
            axis.set_axis_off()
        for column, points in zip(columns, samples, strict=True):
            axis = axes[row, column]
            axis.scatter(*points.T, s=1, alpha=0.4, lw=0)
            axis.set_aspect("equal")
            axis.text(0.02, 0.98, name, transform=axis.transAxes, va="top", fontsize=8)
    for column, pair in enumerate(pairs):
        axes[0, column].set_title(pair, fontsize=9)
    fig.tight_layout()
    fig.savefig(out.parent / "minibatch_ot.png", dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    found = {m: out / f"{m}.json" for m in NAMES}
    results = {m: json.loads(path.read_text()) for m, path in found.items() if path.exists()}
    table(results)
    if all((out / f"{m}.npz").exists() for m in NAMES):
        figure(results, out)


if __name__ == "__main__":
    main()
