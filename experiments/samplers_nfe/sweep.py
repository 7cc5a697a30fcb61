"""Every sampler at 8 to 128 evaluations, on one class-conditional network of the digits.

    flowjax train --config digits --workdir runs/digits_256 --config.model.width=256
    python experiments/samplers_nfe/sweep.py --workdir runs/digits_256 --out experiments/samplers_nfe [--num 5000]

All samplers start from the same noise and labels. Quality is the Frechet distance between normals fitted to the pixels
(0 to 16) of the samples and of the 1,500 training images; for deterministic samplers also the root mean square
distance in model space to an adaptive dopri5 solve. Writes results.json and samplers_nfe.png into --out.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import matplotlib
import numpy as np
from scipy.linalg import eigh

import flowjax
from flowjax.data.digits import open_digits
from flowjax.solvers import make_sampler, samplers
from flowjax.solvers.grids import GRIDS

matplotlib.use("agg")
import matplotlib.pyplot as plt

BUDGETS = (8, 16, 32, 64, 128)
DETERMINISTIC = ("euler", "heun", "rk4", "ab2", "ddim", "edm", "dpmpp_2m", "dpmpp_3m", "unipc")
STOCHASTIC = ("euler_maruyama", "stochastic_heun", "ddpm", "dpmpp_sde", "pc")
REGRIDDED, REGRID_BUDGETS = ("edm", "dpmpp_2m"), (8, 16, 32, 64)
BATCH = 1000


def moments(x):
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    return x.mean(0), np.cov(x.T)


def frechet(a, b):
    """|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2); by eigenvalues, as some pixels never vary."""
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    values, vectors = eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(eigh(root @ cov_b @ root, eigvals_only=True), 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def steps_within(name, path, budget):
    """The most steps whose evaluations fit into the budget, or None."""
    sampler = make_sampler(name, path)
    fitting = [n for n in range(1 + sampler.denoise, budget + 1) if samplers.evaluations(sampler, n) <= budget]
    return max(fitting, default=None)


def draw(run, x0, labels, name, **how):
    """Samples in model space, the largest number of evaluations, and seconds (compilation included)."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(2), i))(np.arange(len(x0)))
    began, parts, nfe = time.perf_counter(), [], 0
    for i in range(0, len(x0), BATCH):
        rows = slice(i, i + BATCH)
        cond = {"label": labels[rows]}
        x, stats = flowjax.solvers.sample(run.model(), x0[rows], solver=name, key=keys[rows], cond=cond, **how)
        parts.append(np.asarray(x))
        nfe = max(nfe, int(stats.nfe.max()))
    return np.concatenate(parts), nfe, time.perf_counter() - began


def figure(out, records, floor):
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 5), constrained_layout=True)
    for i, (name, grid) in enumerate([(name, "uniform") for name in DETERMINISTIC + STOCHASTIC] + [("edm", "edm")]):
        rows = [r for r in records if r["sampler"] == name and r["grid"] == grid]
        nfe = [r["nfe"] for r in rows]
        label = name if grid == "uniform" else f"{name}, grid {grid}"
        style = {
            "color": f"C{i % 10}",
            "marker": "os"[i // 10],
            "ms": 4,
            "lw": 3 if name == "euler" else 1.2,
            "label": label,
        }
        left.loglog(nfe, [r["frechet"] for r in rows], "--" if name in STOCHASTIC else "-", **style)
        if name in DETERMINISTIC:
            right.loglog(nfe, [r["rms_to_dopri5"] for r in rows], **style)
    left.axhline(floor, color="k", lw=0.8, ls=":", label="dopri5, 1e-5")
    left.set(xlabel="evaluations", ylabel="Frechet distance of pixels to the training images", ylim=(26, 160))
    left.set_yticks([30, 40, 60, 80, 100, 150], ["30", "40", "60", "80", "100", "150"])
    right.set(xlabel="evaluations", ylabel="RMS distance to dopri5 from the same noise, model space")
    for axes in (left, right):
        axes.set_xticks(BUDGETS, [str(b) for b in BUDGETS], minor=False)
        axes.minorticks_off()
        axes.legend(fontsize=8)
    fig.savefig(out / "samplers_nfe.png", dpi=85)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=5000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    run, data = flowjax.load(args.workdir), open_digits()
    rows = data.arrays()
    images, labels = rows.x1, rows.cond["label"]
    true, halves = moments(images), np.random.default_rng(0).permutation(len(images))
    x0, labels = run.prior.sample(jax.random.key(1), args.num), np.resize(labels, args.num)
    exact, nfe, seconds = draw(run, x0, labels, "dopri5", rtol=1e-5, atol=1e-5)
    quality = lambda x: frechet(moments(run.spec.finish(x)), true)
    known = {
        "dopri5": {"frechet": quality(exact), "nfe": nfe, "seconds": seconds},
        "frechet_train_test": frechet(moments(data.test), true),
        "frechet_halves_of_train": frechet(moments(images[halves[:750]]), moments(images[halves[750:]])),
    }
    print(json.dumps(known), flush=True)
    cells = [(name, "uniform", b) for name in DETERMINISTIC + STOCHASTIC for b in BUDGETS]
    cells += [(name, grid, b) for name in REGRIDDED for grid in ("edm", "log_snr") for b in REGRID_BUDGETS]
    records = []
    for name, grid, budget in cells:
        steps = steps_within(name, run.path, budget)
        x, nfe, seconds = draw(run, x0, labels, name, steps=steps, grid=GRIDS[grid]())
        record = {"sampler": name, "grid": grid, "budget": budget, "steps": steps, "nfe": nfe, "frechet": quality(x)}
        if name in DETERMINISTIC:
            record["rms_to_dopri5"] = float(np.sqrt(((x - exact) ** 2).mean()))
        records.append(record | {"seconds": seconds})
        print(json.dumps(record), flush=True)
    rounded = json.loads(json.dumps({**known, "records": records}), parse_float=lambda s: float(f"{float(s):.5g}"))
    lines = ",\n  ".join(json.dumps(r) for r in rounded.pop("records"))
    head = json.dumps(rounded)[1:-1]
    (args.out / "results.json").write_text(f'{{"num": {args.num}, {head},\n "records": [\n  {lines}\n ]}}\n')
    figure(args.out, records, known["dopri5"]["frechet"])


if __name__ == "__main__":
    main()
