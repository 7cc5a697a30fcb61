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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/flowjax/blob/main/experiments/notebooks/06_own_path_and_sampler.ipynb)
#
# # Your own path and your own sampler
#
# A schedule, a sampler, a network or a loss of your own needs no copy of flowjax. In this notebook we write a
# schedule and two samplers, *measure* the order of the samplers against an oracle, and train with the schedule
# from a config. It runs in about a minute. `docs/howto/own-parts.md` has the other kinds of parts.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("flowjax") is None:  # the package called flowjax on PyPI is a different library
    source = "flowjax-research[data,plots] @ git+https://github.com/OWNER/flowjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import flowjax
from flowjax import oracles, paths, schedules, solvers

plt.rcParams["figure.dpi"] = 64

# %% [markdown]
# ## 1. A schedule
#
# A path $x_t = \alpha_t x_1 + \sigma_t x_0$ is determined by two functions of time. Ours turns on a circle, so that
# $\alpha_t^2 + \sigma_t^2 = 1$, and is slow at both ends:
#
# $$\alpha_t = \sin\big(\tfrac{\pi}{2} s(t)\big), \qquad \sigma_t = \cos\big(\tfrac{\pi}{2} s(t)\big), \qquad s(t)
# = t^2 (3 - 2t).$$
#
# flowjax derives $\dot\alpha$ and $\dot\sigma$ by automatic differentiation. It also needs the log-SNR $\log
# \alpha^2/\sigma^2$, which must increase, and its inverse, which bisection computes. At $t = 0$ and $t = 1$ the
# velocity of this path vanishes and says nothing about the data, so `t_min` and `t_max` stay away from them.

# %%
SMOOTH = '''
from dataclasses import dataclass

import jax.numpy as jnp

from flowjax import schedules


@dataclass(frozen=True)
class Smooth:
    """A turn on the circle that is slow at both ends; `power` 1 is the smooth step."""

    power: float = 1.0
    t_min, t_max = 1e-3, 1 - 1e-3

    def angle(self, t):
        t = jnp.asarray(t)
        return jnp.pi / 2 * (t**2 * (3 - 2 * t)) ** self.power

    def alpha(self, t):
        return jnp.sin(self.angle(t))

    def sigma(self, t):
        return jnp.cos(self.angle(t))

    def log_snr(self, t):
        return 2 * jnp.log(jnp.tan(self.angle(t)))

    def time_of_log_snr(self, log_snr):
        return schedules.bisect_log_snr(self, log_snr)
'''
Path("my_parts.py").write_text(SMOOTH)  # a module of its own, so that a config can name it
sys.path.insert(0, ".")
from my_parts import Smooth

schedules.check_monotone(Smooth())

t = np.linspace(0.001, 0.999, 200)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for schedule, colour in ((schedules.CondOT(), "tab:blue"), (schedules.Cosine(), "tab:orange"), (Smooth(), "tab:green")):
    name = type(schedule).__name__
    axes[0].plot(t, schedule.alpha(t), color=colour, label=f"{name} $\\alpha$")
    axes[0].plot(t, schedule.sigma(t), "--", color=colour, label=f"{name} $\\sigma$")
    axes[1].plot(t, schedule.log_snr(t), color=colour, label=name)
axes[0].set(xlabel="$t$", ylabel="coefficient", title="schedules")
axes[1].set(xlabel="$t$", ylabel="$\\log\\,\\alpha^2/\\sigma^2$", title="log-SNR")
for ax in axes:
    ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# `check_monotone` also compares automatic derivatives with finite differences. A common mistake, `jnp.abs` with
# its derivative
# 0 at 0, is found before it spoils a training:


# %%
@dataclass(frozen=True)
class Bent(Smooth):
    def angle(self, t):
        t = jnp.asarray(t)
        return jnp.pi / 4 * (1 + jnp.sign(t - 0.5) * jnp.abs(2 * t - 1))


try:
    schedules.check_monotone(Bent())
except ValueError as error:
    print(error)

# %% [markdown]
# ## 2. Samplers
#
# A sampler is a frozen object with a method `step(state, t, t_next, model, key)`. The attribute `needs` lists what
# it asks of a model. We write two.
#
# **Kutta's method of order 3** uses the velocity at three times. It knows nothing about the path:
#
# $$k_1 = v(t, x),\quad k_2 = v(t + \tfrac h2, x + \tfrac h2 k_1),\quad k_3 = v(t + h, x - h k_1 + 2 h k_2),\quad
#   x' = x + \tfrac h6 (k_1 + 4 k_2 + k_3).$$
#
# **A second-order exponential integrator** uses what the path knows. With $\lambda_t = \log \alpha_t/\sigma_t$ and
# $D(t, x) = \mathbb E[x_1 \mid x_t = x]$, variation of constants solves the linear part exactly:
#
# $$x_{t'} = \frac{\sigma_{t'}}{\sigma_t}\,x_t + \sigma_{t'} \int_{\lambda_t}^{\lambda_{t'}} e^{\lambda}
# D\,d\lambda .$$
#
# Holding $D$ constant gives DDIM. Holding it at its value in the middle (in $\lambda$) gives DPM-Solver++(2S), of
# order 2.


# %%
@dataclass(frozen=True)
class Kutta3(solvers.BaseSampler):
    path: paths.AffinePath
    needs = ("velocity",)
    evaluations = 3

    def step(self, state, t, t_next, model, key):
        h, x = t_next - t, state.x
        k1 = model.velocity(t, x)
        k2 = model.velocity(t + h / 2, x + h / 2 * k1)
        k3 = model.velocity(t_next, x - h * k1 + 2 * h * k2)
        return solvers.SamplerState(x + h / 6 * (k1 + 4 * k2 + k3))


@dataclass(frozen=True)
class Exponential2(solvers.BaseSampler):
    path: paths.AffinePath
    evaluations = 2

    def move(self, t, to, x, data):
        """The exact solution from t to `to` while E[x1 | x_t] keeps the value `data`."""
        a, b = self.path.rates(t, x), self.path.rates(to, x)
        return b.sigma / a.sigma * x + (b.alpha - b.sigma / a.sigma * a.alpha) * data

    def step(self, state, t, t_next, model, key):
        schedule, x = self.path.schedule, state.x
        middle = schedule.time_of_log_snr((schedule.log_snr(t) + schedule.log_snr(t_next)) / 2)
        halfway = self.move(t, middle, x, model.ends(t, x).x1)
        return solvers.SamplerState(self.move(t, t_next, x, model.ends(middle, halfway).x1))


# %% [markdown]
# ## 3. The order, measured
#
# The oracle of a Gaussian mixture is an exact model on any path. We solve between two fixed times in float64,
# compare with a very accurate solution, and fit the slope of error against steps. A wrong coefficient in a sampler
# still gives nice pictures; it does not give the right slope.

# %%
jax.config.update("jax_enable_x64", True)
data = flowjax.sources.GaussianMixture(np.array([[-1.5, 0.0], [1.5, 0.0], [0.0, 2.0]]), 0.5)
path = paths.GaussianPath(Smooth())
oracle = oracles.mixture(path, data)
t0, t1 = 0.05, 0.95
x0 = oracle.sample(jax.random.key(0), t0, 256, (2,))
reference, _ = solvers.solve_ode(oracle.velocity, x0, t0=t0, t1=t1, solver="dopri8", rtol=1e-11, atol=1e-11)

counts = (10, 20, 40, 80)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
for name, sampler in {
    "euler": "euler",
    "ddim": "ddim",
    "Exponential2": Exponential2(path),
    "Kutta3": Kutta3(path),
}.items():
    errors, evaluations = [], []
    for steps in counts:
        x, stats = solvers.sample(oracle, x0, solver=sampler, grid=np.linspace(t0, t1, steps + 1))
        errors.append(float(jnp.sqrt(((x - reference) ** 2).mean())))
        evaluations.append(int(stats.nfe[0]))
    slope = -np.polyfit(np.log(counts[1:]), np.log(errors[1:]), 1)[0]
    axes[0].loglog(counts, errors, "o-", label=f"{name}: order {slope:.2f}")
    axes[1].loglog(evaluations, errors, "o-", label=name)
for ax, label in zip(axes, ("steps", "evaluations of the model"), strict=True):
    ax.set(xlabel=label, ylabel="error at $t_1$")
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize=8)
axes[0].set_xticks(counts, labels=counts)
axes[0].set_xticks([], minor=True)
plt.show()

# %% [markdown]
# *Remark.* The left panel measures the order, the right one what you pay for. (`ddim` of flowjax ends with
# $\mathbb E[x_1 \mid x]$, one more evaluation.) *Exercise:* break `Kutta3` (for
# example `h / 2` in place of `2 * h` in `k3`), and look at the order.
#
# ## 4. Training with your own path, sampling with your own sampler
#
# A config names parts from outside as `module:object`. The name is stored with the run, and nothing is imported
# from a run but the modules that its reader allows.

# %%
jax.config.update("jax_enable_x64", False)
changes = {"path.name": "gaussian", "path.schedule": "my_parts:Smooth(1.0)"}
changes |= {
    "train.steps": 1500,
    "train.batch_size": 512,
    "train.warmup": 5e4,
    "train.log_every": 150,
    "train.save_every": 1500,
}
run = flowjax.train("gaussians8", changes=changes, callback=flowjax.notebook.LiveLoss())

model, noise = run.model(), run.prior.sample(jax.random.key(1), 2000)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
for ax, (name, sampler, steps) in zip(
    axes,
    (("euler", "euler", 16), ("Exponential2", Exponential2(run.path), 8), ("Kutta3", Kutta3(run.path), 6)),
    strict=True,
):
    x, stats = solvers.sample(model, noise, solver=sampler, steps=steps)
    ax.scatter(*np.asarray(run.spec.finish(np.asarray(x))).T, s=2, alpha=0.5, lw=0)
    ax.set(xlim=(-8, 8), ylim=(-8, 8), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    ax.set_title(f"{name}, {int(stats.nfe[0])} evaluations")
plt.show()

# %% [markdown]
# **Exercises.**
#
# 1. Write a path with noise, `paths.AffinePath(schedules.CondOT(), noise)`, with your own $\gamma(t)$ (see
#    `flowjax.paths.noise`). When does it have a score?
# 2. Turn `Exponential2` into DPM-Solver++(2M), which reuses the last value of $D$ and needs one evaluation per
#    step. Keep it in `SamplerState.history`. Does the order stay 2?
# 3. Which schedule makes `euler` best on this oracle with 16 evaluations? Why is it not the same as for training?
