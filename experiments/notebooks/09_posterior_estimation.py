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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/flowjax/blob/main/experiments/notebooks/09_posterior_estimation.ipynb)
#
# # Posterior estimation
#
# A simulator turns parameters $\theta$ into an observation $x$. Given an observation, which parameters are plausible?
# We train a flow on simulations of a damped spring, sample the posterior of three observations, and check it in
# three ways, one of them against the exact posterior. It runs in about a minute.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("flowjax") is None:  # the package called flowjax on PyPI is a different library
    source = "flowjax-research[data,plots] @ git+https://github.com/OWNER/flowjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import flowjax
from flowjax import plots
from flowjax.config import defaults
from flowjax.inference import SolverSettings, sample_composed, sample_each
from flowjax.inference.calibration import calibrate
from flowjax.inference.data_of_run import dataset_of

plt.rcParams["figure.dpi"] = 64

# %% [markdown]
# ## 1. A simulator
#
# A mass on a spring starts at 1 and is released. Its position is measured at 20 times with noise of standard
# deviation $s = 0.2$:
#
# $$x_k = e^{-\gamma t_k} \cos(2 \pi f t_k) + s\,\epsilon_k, \qquad f \sim U[0.2, 1], \quad \gamma \sim U[0, 1].$$
#
# A `Simulator` has a prior and a function from a key and parameters `(n, 2)` to observations `(n, 20)`. It lives in a
# module, so that a config can name it. The bounds of the prior are given, so that no sample will be outside of it.

# %%
SPRING = """
import math

import jax
import jax.numpy as jnp

from flowjax.simulators import Simulator
from flowjax.sources import Uniform

TIMES, NOISE = jnp.linspace(0.0, 4.0, 20), 0.2
LOW, HIGH = (0.2, 0.0), (1.0, 1.0)


def position(theta):
    frequency, damping = theta[:, :1], theta[:, 1:]
    return jnp.exp(-damping * TIMES) * jnp.cos(2 * math.pi * frequency * TIMES)


def simulate(key, theta):
    return position(theta) + NOISE * jax.random.normal(key, (len(theta), len(TIMES)))


def spring() -> Simulator:
    prior = Uniform((2,), jnp.array(LOW), jnp.array(HIGH))
    return Simulator(prior, simulate, ("frequency", "damping"), LOW, HIGH)
"""
Path("damped_spring.py").write_text(SPRING)
sys.path.insert(0, ".")
import damped_spring

names = damped_spring.spring().names
true = np.array([[0.35, 0.3], [0.6, 0.1], [0.9, 0.8]], np.float32)
observed = np.asarray(damped_spring.simulate(jax.random.key(1), true))
figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for theta, x in zip(true, observed, strict=True):
    ax.plot(damped_spring.TIMES, x, "o-", label=f"$f$ = {theta[0]:.2g}, $\\gamma$ = {theta[1]:.2g}")
ax.set(xlabel="time", ylabel="position", title="three observations")
ax.legend()
plt.show()

# %% [markdown]
# ## 2. Training
#
# The network learns the velocity from noise to parameters, given the observation `obs`. `data.name=simulator` draws
# new simulations in each step, inside the compiled training loop; `simulator(num=10000)` would fix their number.

# %%
config = defaults("resmlp")
config.data.name, config.data.simulator = "simulator", "damped_spring:spring"
config.data.cond = ("obs(dropout=0, encoder='mlp')",)
config.model.width, config.model.depth = 64, 2
config.train.steps, config.train.save_every, config.train.log_every = 2000, 2000, 200
run = flowjax.train(config, plots=False, callback=flowjax.notebook.LiveLoss())

# %% [markdown]
# ## 3. Samples of three posteriors
#
# One network has the posteriors of all observations. `sample_each` returns samples `(3, num, 2)`.

# %%
solver = SolverSettings("dopri5", rtol=1e-4, atol=1e-4)
samples = sample_each(run, 2000, {"obs": observed}, solver=solver).samples
print(
    samples.shape, "all inside the prior:", bool(np.all((samples > damped_spring.LOW) & (samples < damped_spring.HIGH)))
)
for theta, s in zip(true, samples, strict=True):
    print("true", theta, "  mean", s.mean(0).round(3), "  standard deviation", s.std(0).round(3))

# %% [markdown]
# The likelihood of this simulator is normal, and there are two parameters: the exact posterior can be computed on a
# grid. That is the reference of the corner plot.


# %%
def exact_samples(xs, num, seed=0):
    """Samples of the exact posterior of observations (n, 20) of the same spring, from a grid."""
    f, g = (np.linspace(low, high, 400) for low, high in zip(damped_spring.LOW, damped_spring.HIGH, strict=True))
    grid = np.stack(np.meshgrid(f, g, indexing="ij"), -1).reshape(-1, 2)
    mean = np.asarray(damped_spring.position(grid))
    log_p = sum(-0.5 * ((x - mean) ** 2).sum(1) / damped_spring.NOISE**2 for x in xs)
    p = np.exp(log_p - log_p.max())
    rng = np.random.default_rng(seed)
    cell = np.array([f[1] - f[0], g[1] - g[0]])
    return grid[rng.choice(len(grid), num, p=p / p.sum())] + cell * rng.uniform(-0.5, 0.5, (num, 2))


exact = exact_samples(observed[:1], 20000)
plots.corner(samples[0], names, truth=true[0], reference=exact, labels=("flow", "exact"))

# %% [markdown]
# ## 4. Does it explain the observation?
#
# The posterior predictive distribution: simulations from posterior samples. If the observation is outside of it, the
# simulator or the network is wrong.

# %%
again = np.asarray(damped_spring.simulate(jax.random.key(2), samples[0]))
plots.predictive(observed[0], again)

# %% [markdown]
# ## 5. Is it calibrated?
#
# For simulations that the network has not seen, the rank of a true parameter among posterior samples is uniform if
# the posterior is right. The curves stay inside the grey bands with probability 95%. `docs/howto/calibration.md` says
# what these checks cannot see.

# %%
found = calibrate(run, dataset_of(run), num=200, draws=100, solver=SolverSettings("heun", steps=20))
ranks, coverage = found.ranks, found.coverage
print("p-values of the ranks:", np.round(ranks.p_value, 3), "  of the coverage:", np.round(coverage.p_value, 3))
bands = (ranks.low, ranks.high), (coverage.low, coverage.high)
plots.calibration(ranks.levels, ranks.ecdf, coverage.ecdf[:, 0], *bands, names)

# %% [markdown]
# ## 6. The log-density
#
# The change of variables gives the density of the posterior, in the units of the parameters. On a grid it integrates
# to one, and the true parameters are in a region of high density.

# %%
f, g = np.linspace(0.28, 0.42, 36), np.linspace(0, 0.8, 41)[1:]
grid = np.stack(np.meshgrid(f, g, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
log_p = run.log_prob(grid, cond={"obs": observed[:1]}).reshape(len(f), len(g))
integral = np.exp(log_p).sum() * (f[1] - f[0]) * (g[1] - g[0])
figure, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
image = ax.pcolormesh(f, g, np.exp(log_p).T)
ax.plot(*true[0], "r+", ms=12)
ax.set(xlabel="frequency", ylabel="damping", title=f"integral {integral:.3f}")
figure.colorbar(image, label="posterior density")
plt.show()

# %% [markdown]
# ## 7. Two observations of the same spring
#
# For independent observations, $p(\theta \mid x_1, x_2) \propto p(\theta \mid x_1)\, p(\theta \mid x_2) / p(\theta)$.
# `sample_composed` samples this with the network of single observations. It is exact if the posteriors are normal in
# the coordinates of the network, and these nearly are.

# %%
two = np.concatenate([observed[:1], np.asarray(damped_spring.simulate(jax.random.key(3), true[:1]))])
together = sample_composed(run, 2000, {"obs": two}, solver=solver).samples
exact_two = exact_samples(two, 20000)
for name, s in (("one observation", samples[0]), ("two, composed", together), ("two, exact", exact_two)):
    print(f"{name:16} mean {s.mean(0).round(4)}  standard deviation {s.std(0).round(4)}")
plots.corner(together, names, truth=true[0], reference=exact_two, labels=("composed", "exact"))

# %% [markdown]
# **Exercises.**
#
# 1. Train on `simulator(num=500)`, and compare `loss` and `val_loss`. Which checkpoint is the best?
# 2. Sample the posterior of `3 * observed[:1]`. What does the line on stderr say, and does the posterior explain the
#    observation?
# 3. Compose ten observations. How do the standard deviations fall, and do they still agree with the exact posterior?
# 4. Let the number of measurements vary: replace some by NaN in `simulate`, and train with
#    `simulator(missing=True)`.
