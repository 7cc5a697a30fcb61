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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/flowjax/blob/main/experiments/notebooks/10_from_a_flow_to_one_step.ipynb)
#
# # From a flow to one step
#
# A trained velocity field $v(t, x)$ gives samples by solving $\frac{d}{dt} X_t = v(t, X_t)$ from noise at $t = 0$ to
# data at $t = 1$. Each step of the solver evaluates the network once or more. This notebook reduces the number of
# steps from 100 to 1 in three ways: straighter trajectories (*reflow*), a network that learns the *flow map*
# between any two times, and a network that learns the map to the data (*consistency*). It takes about three
# minutes on a CPU.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("flowjax") is None:  # the package called flowjax on PyPI is a different library
    source = "flowjax-research[data,plots] @ git+https://github.com/OWNER/flowjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import flowjax
from flowjax.config import defaults
from flowjax.data.densities import DENSITIES
from flowjax.metrics import wasserstein2_squared_pairs

plt.rcParams["figure.dpi"] = 64
folder = Path(tempfile.mkdtemp(prefix="flowjax-"))

# %% [markdown]
# ## 1. One step of a flow is not enough
#
# We train a flow on eight Gaussians. `config` makes the same network, batches and learning rate for all methods.


# %%
def config(method, steps=1500, **keys):
    """A small config of a method on eight Gaussians."""
    config = defaults("mlp", method=method)
    config.data.name = "gaussians8"
    config.model.width = 64
    config.train.batch_size = 512
    config.train.steps = config.train.log_every = config.train.save_every = steps
    config.train.lr = 4e-3
    for key, value in keys.items():
        config.method[key] = value
    return config


flow = flowjax.train(config("flow_matching"), folder / "flow", plots=False)

# %% [markdown]
# At $t = 0$ the velocity is $E[x_1 - x_0 \mid x_0] = E[x_1] - x_0$, because noise and data are paired at random. One
# Euler step therefore maps every $x_0$ to the mean of the data. Trajectories are curved where the lines from noise to
# data cross, and a few long steps cannot follow them.

# %%
truth = np.asarray(DENSITIES["gaussians8"]().sample(jax.random.key(0), 2000))
noise = flow.prior.sample(jax.random.key(1), 150)


def distance(samples):
    """The squared W2 distance between 2,000 samples and 2,000 points of the data."""
    return wasserstein2_squared_pairs(truth, np.asarray(samples), pairs=2)


def show(run, solver, steps, title):
    """Trajectories from the same noise, and samples of 1, 2 and 8 steps."""
    axes = plt.subplots(1, 4, figsize=(13, 3.4), sharex=True, sharey=True, layout="constrained")[1]
    keys = {"key": jax.random.key(2)} if solver == "consistency" else {}
    states, _ = flowjax.solvers.sample(run.model(), noise, solver=solver, steps=steps, save=True, **keys)
    states = run.spec.finish(np.asarray(states))
    axes[0].plot(*states.transpose(2, 0, 1), lw=0.4, color="0.5")
    axes[0].scatter(*states[-1].T, s=4, color="tab:blue")
    axes[0].set(title=f"{title}: {steps} steps", aspect="equal")
    for ax, n in zip(axes[1:], (1, 2, 8), strict=True):
        samples = run.sample(2000, solver=solver, steps=n)
        ax.scatter(*samples.T, s=1, alpha=0.5)
        ax.set(title=f"{n} step{'s' * (n > 1)}: $W_2^2$ = {distance(samples):.2f}", aspect="equal")
    plt.show()


show(flow, "euler", 100, "flow")

# %% [markdown]
# ## 2. Reflow: straighter trajectories
#
# The flow maps each $x_0$ to its own $x_1$. A second flow that is trained on these pairs has the same distribution at
# $t = 1$, but its lines cross much less, so its trajectories are nearly straight (Liu et al. 2022). `make_pairs`
# solves the flow for new noise, and `train.start_from` starts from the parameters of the first flow. On the command
# line both together are `flowjax reflow`.

# %%
from flowjax.inference import SolverSettings
from flowjax.inference.pairs import make_pairs

pairs = make_pairs(flow, folder / "pairs", 20_000, seed=1, solver=SolverSettings("heun", steps=20))
second = config("flow_matching")
second.data.name, second.data.path, second.data.pairs = "pairs", str(pairs.folder), "x0"
second.train.start_from = str(folder / "flow")
reflowed = flowjax.train(second, folder / "reflow", plots=False)
show(reflowed, "euler", 100, "reflow")

# %% [markdown]
# ## 3. The flow map, and an equation for it
#
# Let $X(s, t, x)$ be the point at time $t$ of the trajectory that is at $x$ at time $s$, and
#
# $$u(s, t, x) = \frac{X(s, t, x) - x}{t - s}$$
#
# the average velocity in between, with $u(t, t, x) = v(t, x)$. If we know $u$, one evaluation gives a sample:
# $X(0, 1, x) = x + u(0, 1, x)$. The point at time $t$ does not change if $x$ moves along its own trajectory and $s$
# with it. So the derivative of $(t - s)\, u(s, t, x_s)$ with respect to $s$ is $-v(s, x_s)$, which gives
#
# $$u(s, t, x_s) = v(s, x_s) + (t - s)\left(\frac{\partial u}{\partial s} + \frac{\partial u}{\partial x} v\right).$$
#
# MeanFlow trains a network by this equation. The bracket is one Jacobian-vector product, `jax.jvp`, with the
# tangent $(1, v)$. For a normal distribution $N(m, c^2)$ everything is known, so we can check the equation.

# %%
m, c = 2.0, 0.5
mean, std = lambda t: m * t, lambda t: jnp.sqrt((1 - t) ** 2 + (c * t) ** 2)
X = lambda s, t, x: mean(t) + std(t) / std(s) * (x - mean(s))
u = lambda s, t, x: (X(s, t, x) - x) / (t - s)
v = lambda t, x: jax.jvp(lambda r: X(t, r, x), (t,), (1.0,))[1]

s, t, x = 0.3, 0.9, jnp.float32(-1.2)
value, along = jax.jvp(lambda s, x: u(s, t, x), (s, x), (1.0, v(s, x)))
print(f"u = {value:.5f},  v + (t - s) (du/ds + du/dx v) = {v(s, x) + (t - s) * along:.5f}")

# %% [markdown]
# ## 4. A network that learns the flow map
#
# The method `flow_map` minimises the residual of such an equation for the network's own velocity, which the rows with
# $s = t$ learn by flow matching at the same time. Its network takes both times. With `teacher` it follows the
# velocity of the trained flow, and it starts from its parameters.

# %%
mapped_config = config("flow_map", different=0.75, teacher=str(folder / "flow"))
mapped_config.train.start_from = str(folder / "flow")
mapped = flowjax.train(mapped_config, folder / "map", plots=False)
show(mapped, "flow_map", 8, "flow map")

# %% [markdown]
# ## 5. Consistency: the map to the data
#
# A consistency model learns $f(t, x) = X(t, 1, x)$ only: two points of the same trajectory must have the same $f$. To
# improve a one-step sample it is noised again, to a later time, and mapped to the data again. These are not
# trajectories of the flow, and each of these steps adds new noise.

# %%
consistency_config = config("consistency", teacher=str(folder / "flow"), doubling=400, last=80)
consistency_config.train.start_from = str(folder / "flow")
consistent = flowjax.train(consistency_config, folder / "consistency", plots=False)
show(consistent, "consistency", 8, "consistency")

# %% [markdown]
# ## What we have seen
#
# - One Euler step of a flow gives the mean of the data; reflow makes that step useful.
# - Flow maps and consistency models are made for one step. More steps correct errors of the network, and do not
#   correct an error of discretisation.
# - The method costs training: a reflow needs pairs of a trained flow, a flow map derivatives of the network. How the
#   methods compare at equal cost is measured in `experiments/few_step`.
#
# *Try it:* train `mean_flow` in place of `flow_map`, without a teacher. Which metric in `metrics.jsonl` tells you that
# training is healthy? (`velocity_error` should become flat, and `target_square` should stay near its value at the
# start.)
