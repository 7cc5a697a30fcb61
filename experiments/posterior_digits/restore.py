"""Inpainting and deblurring of 8 x 8 digits by posterior sampling with an unconditional network.

    flowjax train --config digits --workdir runs/digits_plain --config.data.cond=
    python experiments/posterior_digits/restore.py --workdir runs/digits_plain --out experiments/posterior_digits

Measures test images (their upper half, or a 3 x 3 binomial blur, with noise), and draws samples of the posterior with
`flowjax.guidance.Posterior`, by a deterministic and a stochastic sampler. All numbers are in model space, pixels in
[-1, 1]. A control repeats the inpainting for normal data with the exact denoiser, where the method is exact. Writes
results.json and posterior_digits.png into --out; --tune scans data_std and scale instead, on other test images.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import flowjax
from flowjax.data.digits import open_digits
from flowjax.guidance import Posterior, linear_measurement
from flowjax.oracles import gaussian

matplotlib.use("agg")
import matplotlib.pyplot as plt

NOISE_STD, DATA_STD = 0.05, 0.54
SETTINGS = [(DATA_STD, 1.0), (DATA_STD, 2.0)]
TUNING = [(0.35, 1.0), (DATA_STD, 1.0), (1.0, 1.0), (DATA_STD, 2.0), (DATA_STD, 3.0)]
"""Of `Posterior`: (data_std, scale)."""
SAMPLERS = {"heun": 50, "euler_maruyama": 200}


def upper_half(x):
    return x[:, :4]


def blur(x):
    """(1 2 1) / 4 along both axes, the edge repeated."""
    for axis in (1, 2):
        x = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        left, middle, right = (jax.lax.slice_in_dim(x, i, i + 8, axis=axis) for i in range(3))
        x = (left + 2 * middle + right) / 4
    return x


OPERATORS = {"inpainting": upper_half, "deblurring": blur}


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def draw(run, operator, y, each, sampler, steps, data_std, scale):
    """`each` samples a measurement, (each, N, 8, 8, 1)."""
    rows = jnp.tile(y, (each, 1, 1, 1))
    guided = Posterior(run.model(), linear_measurement(operator, rows, NOISE_STD), data_std, scale)
    x0 = run.prior.sample(jax.random.key(4), len(rows))
    x, _ = flowjax.solvers.sample(guided, x0, solver=sampler, steps=steps, key=jax.random.key(5))
    return np.asarray(x).reshape(each, *y.shape[:1], *x.shape[1:])


def record(samples, operator, y, truth):
    """How well the samples fit the measurement, how far their mean is from the truth, how much they differ."""
    n = len(samples)
    residual = np.stack([np.asarray(operator(s)) for s in samples]) - y
    miss, spread = samples.mean(0) - truth, samples.std(0, ddof=1)
    top, low = (slice(None), slice(0, 4)), (slice(None), slice(4, 8))
    return {
        "residual_over_noise": rms(residual) / NOISE_STD,
        "mean_error": rms(miss),
        "mean_error_upper": rms(miss[top]),
        "mean_error_lower": rms(miss[low]),
        "spread_upper": rms(spread[top]),
        "spread_lower": rms(spread[low]),
        "error_over_spread": rms(miss) / (rms(spread) * (1 + 1 / n) ** 0.5),
    }


def baselines(task, operator, y, truth, train):
    """The data mean, the measurement with the rest at the data mean, and the posterior mean of a normal prior."""
    flat = train.reshape(len(train), -1).astype(np.float64)
    mean, cov = flat.mean(0), np.cov(flat.T)
    a = np.asarray(operator(jnp.eye(64).reshape(64, 8, 8, 1))).reshape(64, -1).T
    gain = cov @ a.T @ np.linalg.inv(a @ cov @ a.T + NOISE_STD**2 * np.eye(len(a)))
    wiener = mean + (y.reshape(len(y), -1) - mean @ a.T) @ gain.T
    filled = np.tile(mean.reshape(8, 8, 1), (len(y), 1, 1, 1))
    filled[:, : y.shape[1]] = y
    guesses = {"data mean": np.broadcast_to(mean.reshape(8, 8, 1), truth.shape), "measurement, else data mean": filled}
    guesses["posterior mean of a normal prior"] = wiener.reshape(truth.shape)
    errors = lambda x: {"all": rms(x - truth), "lower": rms((x - truth)[:, 4:])}
    return {name: errors(x) for name, x in guesses.items()}


def control(run, n, each):
    """Independent normal pixels with the exact denoiser: here the guided sampler draws from the true posterior."""
    oracle = gaussian(run.path, jnp.zeros((8, 8, 1)), DATA_STD)
    exact = SimpleNamespace(model=oracle, path=run.path, prior=run.prior)
    key_truth, key_noise = jax.random.split(jax.random.key(6))
    truth = DATA_STD * jax.random.normal(key_truth, (n, 8, 8, 1))
    y = upper_half(truth) + NOISE_STD * jax.random.normal(key_noise, (n, 4, 8, 1))
    found = {}
    for sampler, steps in SAMPLERS.items():
        samples = draw(exact, upper_half, y, each, sampler, steps, DATA_STD, 1.0)
        found[sampler] = {k: round(v, 4) for k, v in record(samples, upper_half, y, np.asarray(truth)).items()}
    return found


def figure(out, shown, columns=6):
    """For each task: truth, measurement, four samples, posterior mean."""
    names = ["truth", "measurement", *[f"sample {i}" for i in range(1, 5)], "mean"]
    fig, axes = plt.subplots(7, 2 * columns + 1, figsize=(9.2, 5.4))
    for j, (task, (truth, y, samples)) in enumerate(shown.items()):
        measured = np.full(truth.shape, np.nan)
        measured[:, : y.shape[1]] = y
        rows = [truth, measured, *samples[:4], samples.mean(0)]
        for i, row in enumerate(rows):
            for k in range(columns):
                axes[i, j * (columns + 1) + k].imshow(row[k, ..., 0], cmap="gray", vmin=-1, vmax=1)
        axes[0, j * (columns + 1) + columns // 2].set_title(task, fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_facecolor("#cfe3f5")
    for i, name in enumerate(names):
        axes[i, columns].axis("off")
        axes[i, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    fig.subplots_adjust(left=0.115, right=0.995, bottom=0.01, top=0.95, wspace=0.06, hspace=0.06)
    fig.savefig(out / "posterior_digits.png", dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--each", type=int, default=16, help="samples a measurement")
    parser.add_argument("--tune", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    run, data = flowjax.load(args.workdir), open_digits()
    key_truth, key_noise, key_train = jax.random.split(jax.random.key(3), 3)
    chosen = data.test[-args.images :] if args.tune else data.test[: args.images]
    truth = np.asarray(run.spec.prepare(key_truth, jnp.asarray(chosen)))
    train = np.asarray(run.spec.prepare(key_train, jnp.asarray(data.arrays()[0])))
    pixel_std = float(np.sqrt(train.var(0).mean()))
    print(f"standard deviation of a pixel about its mean: {pixel_std:.4f}")
    results, shown = {}, {}
    for task, operator in OPERATORS.items():
        clean = np.asarray(operator(truth))
        y = clean + NOISE_STD * np.asarray(jax.random.normal(key_noise, clean.shape))
        results[task] = {"baselines": baselines(task, operator, y, truth, train), "samplers": []}
        print(task, json.dumps(results[task]["baselines"]))
        for data_std, scale in TUNING if args.tune else SETTINGS:
            for sampler, steps in [("heun", 25)] if args.tune else SAMPLERS.items():
                samples = draw(run, operator, jnp.asarray(y), args.each, sampler, steps, data_std, scale)
                how = {"sampler": sampler, "steps": steps, "data_std": data_std, "scale": scale}
                row = how | record(samples, operator, y, truth)
                row = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
                results[task]["samplers"].append(row)
                print(json.dumps(row), flush=True)
                if sampler == "euler_maruyama" and scale == 1:
                    shown[task] = (truth, y, samples)
    if not args.tune:
        results["control"] = control(run, args.images, args.each)
        print("control", json.dumps(results["control"]))
    settings = {"noise_std": NOISE_STD, "images": args.images, "samples_each": args.each, "pixel_std": pixel_std}
    name = "tuning.json" if args.tune else "results.json"
    (args.out / name).write_text(json.dumps({"settings": settings} | results, indent=1) + "\n")
    if not args.tune:
        figure(args.out, shown)


if __name__ == "__main__":
    main()
