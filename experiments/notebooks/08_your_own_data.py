# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/flowjax/blob/main/experiments/notebooks/08_your_own_data.ipynb)
#
# # Your own data
#
# From a CSV file to samples: the marginals beside those of the data, columns as conditions (a number and a
# category), samples for given conditions, guidance, and an `.npz` file with a condition of its own name. The data
# are invented, so that we know what is right. It runs in one to two minutes.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("flowjax") is None:  # the package called flowjax on PyPI is a different library
    source = "flowjax-research[data,plots] @ git+https://github.com/OWNER/flowjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import flowjax

plt.rcParams["figure.dpi"] = 64

# %% [markdown]
# ## 1. A table
#
# Flats in three districts. The price per square metre depends on the district, and the number of rooms, an integer,
# depends on the area. The heat loss, about $10^{-3}$, is random. Prices are of the scale $10^5$.

# %%
rng, n = np.random.default_rng(0), 10_000
districts, per_metre = ("suburb", "harbour", "centre"), np.array([3e3, 4e3, 6e3])
code = rng.choice(3, n, p=[0.5, 0.3, 0.2])
area = rng.lognormal(np.log(70), 0.35, n)
price = per_metre[code] * area * rng.lognormal(0, 0.15, n)
rooms = 1 + rng.poisson(area / 40)
heat = 1e-3 * rng.gamma(4, 0.25, n)
with open("flats.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["district", "area", "price", "rooms", "heat"])
    writer.writerows(zip(np.array(districts)[code], area.round(1), price.round(), rooms, heat.round(7), strict=True))
print(Path("flats.csv").read_text()[:150])

# %% [markdown]
# The config `table` has a small residual network for tables; `data.path` is our file. `price` was rounded, but it is
# written with a decimal point, so that it is read as a real number. `district` and `area` become conditions: the
# network learns $p(\text{price}, \text{rooms}, \text{heat} \mid \text{district}, \text{area})$. Training hides each
# condition with the probability `data.cond_dropout`, so that we may also leave it out later.

# %%
changes = {"data.path": "flats.csv", "data.cond": ("district", "area"), "data.cond_dropout": 0.2}
changes |= {"train.steps": 1200, "train.log_every": 100}
run = flowjax.train("table", changes=changes, callback=flowjax.notebook.LiveLoss())
for column in run.spec.columns:
    print(column.name, column.kind, column.categories, "(condition)" if column.condition else "")

# %% [markdown]
# ## 2. Marginals
#
# We draw a sample for each row of the table, given its district and its area. Categories are given as texts, a
# number as a column of shape (N, 1). Samples come back in the units of the table, and rooms are whole numbers.

# %%
names = ["price", "rooms", "heat"]
data = np.stack([price, rooms, heat], -1)
given = {"district": np.array(districts)[code], "area": area[:, None]}
heun = {"solver": "heun", "steps": 20}
samples = run.sample(n, cond=given, **heun)

figure, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
for i, (ax, name) in enumerate(zip(axes, names, strict=False)):
    low, high = np.quantile(data[:, i], [0, 0.998])
    bins = np.arange(0, high + 2) - 0.5 if name == "rooms" else np.linspace(low, high, 50)
    ax.hist(data[:, i], bins, density=True, histtype="step", lw=1.5, label="data")
    ax.hist(samples[:, i], bins, density=True, histtype="step", lw=1.5, label="samples")
    ax.set(title=name, yticks=[])
axes[3].scatter(area[:1500], data[:1500, 0], s=3, label="data")
axes[3].scatter(area[:1500], samples[:1500, 0], s=3, label="samples")
axes[3].set(title="price by area", xlabel="area")
axes[0].legend()
plt.show()

marginal = flowjax.metrics.marginal_distances(samples, data)
for i, name in enumerate(names):
    print(
        f"{name:6s} mean {data[:, i].mean():10.4g} and {samples[:, i].mean():10.4g},  standard deviation "
        f"{data[:, i].std():9.3g} and {samples[:, i].std():9.3g},  W1 {marginal.wasserstein[i]:.3f} of it"
    )
largest, _ = flowjax.metrics.correlation_error(samples, data)
print(f"largest error of a correlation: {largest:.3f}")

# %% [markdown]
# `flowjax evaluate --workdir ...` computes such distances on held-out rows, beside those between two sets of data.
#
# ## 3. Samples for given conditions
#
# `flowjax.inference.sample_each` draws many samples for each row of conditions, here for five areas in each of two
# districts. By our formula the price of a flat is log-normal with the median (price per square metre) x (area).

# %%
areas = np.array([45.0, 60, 80, 100, 120])
figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained", sharey=True)
for ax, district in zip(axes, ("suburb", "centre"), strict=True):
    cond = {"district": np.array([district]), "area": areas[:, None]}  # one district for all rows
    drawn = flowjax.inference.sample_each(run, 1000, cond, solver=flowjax.inference.SolverSettings("heun", steps=20))
    low, middle, high = np.quantile(drawn.samples[..., 0], [0.05, 0.5, 0.95], axis=1)
    exact = per_metre[districts.index(district)] * areas
    ax.fill_between(areas, exact * np.exp(-1.645 * 0.15), exact * np.exp(1.645 * 0.15), alpha=0.3, label="formula, 90%")
    ax.errorbar(areas, middle, [middle - low, high - middle], fmt="k.", capsize=3, label="samples, median and 90%")
    ax.set(title=district, xlabel="area")
    print(f"{district}: median of the samples by that of the formula:", (middle / exact).round(3))
axes[0].set(ylabel="price")
axes[0].legend()
plt.show()

# %% [markdown]
# A condition that is left out is *not given*: the network then averages over it. Here only the district is known.

# %%
for k, district in enumerate(districts):
    some = run.sample(2000, cond={"district": np.array([district])}, **heun)[:, 0]
    print(f"{district:8s} mean price {some.mean():9.0f}, of the data {price[code == k].mean():9.0f}")

# %% [markdown]
# ## 4. Guidance
#
# Classifier-free guidance with a scale above 1 exaggerates what is typical of a condition, at the price of a wrong
# distribution. For a table we want the distribution, so that the right scale is 1, which is no guidance. It needs
# training with `data.cond_dropout`.

# %%
flat = {"district": np.array(["centre"]), "area": np.array([[100.0]])}
print(f"formula     median {6e5:.0f}, spread of the logarithm 0.150")
for scale in (0.0, 1.0, 1.5, 2.0):
    guide = None if scale == 1 else flowjax.inference.Guide("cfg", scale)
    drawn = run.sample(2000, cond=flat, guide=guide, **heun)[:, 0]
    low, middle, high = np.quantile(drawn, [0.159, 0.5, 0.841])  # one standard deviation of a normal to either side
    print(f"scale {scale:3.1f}   median {middle:.0f}, spread of the logarithm {np.log(high / low) / 2:.3f}")

# %% [markdown]
# ## 5. Arrays in an `.npz` file
#
# Other data are arrays: `x`, and conditions under names of their own. Here `x` is the use of heat in the 24 hours of
# a day, and `outside` the mean temperature of the day.

# %%
outside = rng.uniform(-10, 25, (8000, 1))
hours = np.arange(24)


def mean_use(outside):
    return np.maximum(20 - outside, 0) * (1 + 0.5 * np.cos(2 * np.pi * (hours - 7) / 12)) / 20


x = mean_use(outside) + 0.1 * rng.normal(size=(8000, 24)) + 0.1 * rng.normal(size=(8000, 1))
np.savez("days.npz", x=x.astype(np.float32), outside=outside.astype(np.float32))

changes = {"data.path": "days.npz", "data.cond": ("outside",), "train.steps": 1000, "train.log_every": 100}
days = flowjax.train("table", changes=changes)
asked = np.array([[-5.0], [8.0], [22.0]])
drawn = flowjax.inference.sample_each(
    days, 500, {"outside": asked}, solver=flowjax.inference.SolverSettings("heun", steps=20)
).samples
figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained", sharey=True)
for ax, one, degrees in zip(axes, drawn, asked[:, 0], strict=True):
    ax.plot(hours, one[:20].T, color="0.7", lw=0.7)
    ax.plot(hours, one.mean(0), label="mean of 500 samples")
    ax.plot(hours, mean_use(degrees), "k--", label="mean of the formula")
    ax.set(title=f"{degrees:g} degrees", xlabel="hour")
axes[2].legend()
plt.show()
spread = drawn.std(1).mean(1)
print("standard deviation of an hour:", spread.round(3), f"by the formula {np.hypot(0.1, 0.1):.3f}")
print("correlation of two hours:", [round(float(np.corrcoef(one[:, 3], one[:, 15])[0, 1]), 2) for one in drawn], "0.5")

# %% [markdown]
# **Exercises.**
#
# 1. Replace `flats.csv` by a table of yours. `data.name="table(drop='id')"` leaves a column out.
# 2. Leave `data.cond` out, so that `district` and `area` are learned as well. How far are the shares of the
#    districts from those of the data?
# 3. Ask for an area of 400 in section 3, far outside of the data. What does flowjax say, and what are the samples?
# 4. On the command line: `flowjax train --config table --config.data.path=flats.csv --config.data.cond=district,area
#    --workdir runs/flats`, and `flowjax sample --workdir runs/flats --num 1000 --out samples.csv`.
