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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/flowjax/blob/main/experiments/notebooks/05_likelihood.ipynb)
#
# # Likelihood by the change of variables
#
# A flow is invertible, so that its density can be computed. We derive the formula, check it against closed forms,
# compare the exact divergence with Hutchinson's estimator, score a trained model in the plane, and end with what
# is easy to get wrong with bits per dimension. It runs in about a minute.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("flowjax") is None:  # the package called flowjax on PyPI is a different library
    source = "flowjax-research[data,plots] @ git+https://github.com/OWNER/flowjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm

import flowjax

plt.rcParams["figure.dpi"] = 64

# %% [markdown]
# ## 1. From the change of variables to an ODE
#
# A bijection $x = \psi(z)$ moves the density $p_0$ to $p_1(x) = p_0(z)\,/\,|\det D\psi(z)|$. Apply this to a small
# step of a flow, $\psi(x) = x + h\,v(t, x)$. Its determinant is $\det(I + h\,Dv) = 1 + h\,\nabla\!\cdot v +
# O(h^2)$, and for $h \to 0$
#
# $$\frac{d}{dt} \log p_t(X_t) = -\nabla\!\cdot v(t, X_t).$$
#
# To score a data point, solve backwards from $t = 1$ to noise, and collect the divergence on the way:
#
# $$\log p_1(x) = \log p_0(X_0) - \int_0^1 \nabla\!\cdot v(t, X_t)\,dt, \qquad X_1 = x .$$
#
# Twenty lines of plain JAX do it. The field is the exact velocity from noise to a Gaussian mixture, so that the
# true density is known.

# %%
path = flowjax.paths.GaussianPath(flowjax.schedules.CondOT())
data = flowjax.data.densities.eight_gaussians()
oracle = flowjax.oracles.mixture(path, data)


def velocity_and_divergence(t, x):
    """v (n, 2), and the trace of its Jacobian (n,), for a batch of independent points."""
    one = lambda x: oracle.velocity(t, x[None])[0]
    return oracle.velocity(t, x), jax.vmap(lambda x: jnp.trace(jax.jacfwd(one)(x)))(x)


def log_prob(x, steps):
    """Heun's method from t = 1 to t = 0, for the state (x, integral of the divergence)."""
    h = 1 / steps

    def step(state, i):
        x, total = state
        t = 1 - i * h
        v, div = velocity_and_divergence(t, x)
        v_next, div_next = velocity_and_divergence(t - h, x - h * v)
        return (x - h / 2 * (v + v_next), total + h / 2 * (div + div_next)), None

    (x0, total), _ = jax.lax.scan(step, (x, jnp.zeros(len(x))), jnp.arange(steps))
    return jnp.asarray(norm.logpdf(np.asarray(x0)).sum(-1)) - total


points = data.sample(jax.random.key(0), 500)
truth = data.log_prob(points)
for steps in (25, 50, 100, 200):
    print(f"{steps:4d} steps: largest error {float(jnp.abs(log_prob(points, steps) - truth).max()):.4f} nats")
source = flowjax.sources.Normal((2,))
value, _, stats = flowjax.likelihood.log_prob(oracle, points, source)
print(
    f"flowjax.likelihood.log_prob: {float(jnp.abs(value - truth).max()):.5f} nats, {int(stats.nfe.max())} evaluations"
)

# %% [markdown]
# The tolerance of the solver is an error in nats, and grows with the dimension. Halve the step, or take a tenth of
# `rtol` and `atol`, until the digits that you report stand still.
#
# ## 2. Hutchinson's estimator
#
# The exact trace of a $D \times D$ Jacobian $J$ costs $D$ Jacobian-vector products. For random signs $\epsilon$
# with
# $\mathbb E[\epsilon\epsilon^\top] = I$, one product gives an unbiased estimate:
#
# $$\operatorname{tr} J = \mathbb E\,[\epsilon^\top J\,\epsilon], \qquad
#   \operatorname{Var}[\epsilon^\top J\,\epsilon] = \sum_{i < j} (J_{ij} + J_{ji})^2 .$$
#
# The signs are drawn once for each point and kept for the whole trajectory, so that the integrand stays smooth.
# Only the off-diagonal entries of $J$ make noise: for independent coordinates the estimate is exact.

# %%
dimensions, noise, seconds = (2, 8, 32, 64), [], {"exact": [], "hutchinson": []}
for d in dimensions:
    means = 1.5 * jax.random.normal(jax.random.key(1), (6, d))  # the modes couple all coordinates
    mixture = flowjax.sources.GaussianMixture(means, 0.7)
    model, normal = flowjax.oracles.mixture(path, mixture), flowjax.sources.Normal((d,))
    x = mixture.sample(jax.random.key(2), 256)
    value = {}
    for divergence in seconds:
        score = lambda key, model=model, x=x, normal=normal, divergence=divergence: flowjax.likelihood.log_prob(
            model, x, normal, divergence=divergence, key=key, solver="rk4", steps=20
        )[0]
        value[divergence] = score(jax.random.key(3))
        repeats = []
        for _ in range(3):
            start = time.perf_counter()
            score(jax.random.key(4)).block_until_ready()
            repeats.append(time.perf_counter() - start)
        seconds[divergence].append(min(repeats))
    noise.append(float((value["hutchinson"] - value["exact"]).std()))

figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
axes[0].plot(dimensions, noise, "o-")
axes[0].set(
    xlabel="dimension $D$", ylabel="nats", title="standard deviation of one probe", xscale="log", ylim=(0, None)
)
for divergence, values in seconds.items():
    axes[1].loglog(dimensions, values, "o-", label=divergence)
axes[1].set(xlabel="dimension $D$", ylabel="seconds for 256 points", title="cost")
axes[1].legend()
for ax in axes:
    ax.set_xticks(dimensions, labels=dimensions)
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3, which="both")
plt.show()

# %% [markdown]
# Probes average out over points: the mean over $N$ points has $1/\sqrt N$ of this noise. For a single point use
# `divergence="exact"` or many `probes`.
#
# ## 3. The density of a trained model
#
# A small network on the two moons. `run.log_prob` works in the units of the data; the Jacobian of the
# normalisation is included.

# %%
changes = {
    "train.steps": 2500,
    "train.batch_size": 512,
    "train.warmup": 5e4,
    "train.log_every": 250,
    "train.save_every": 2500,
}
run = flowjax.train("moons", changes=changes, callback=flowjax.notebook.LiveLoss())
moons = flowjax.data.densities.DENSITIES["moons"]()
xs, ys = np.linspace(-6, 8, 70), np.linspace(-5, 4, 45)
grid = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
learned, exact = run.log_prob(grid, solver="rk4", steps=25), np.asarray(moons.log_prob(jnp.asarray(grid)))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.3), layout="constrained")
for ax, log_p, title in zip(axes, (exact, learned), ("true density", "learned density"), strict=True):
    image = ax.imshow(
        np.exp(log_p).reshape(45, 70), origin="lower", extent=(-6, 8, -5, 4), vmin=0, vmax=np.exp(exact.max())
    )
    ax.set(xlabel="$x_1$", ylabel="$x_2$", title=title)
figure.colorbar(image, ax=axes, label="$p(x)$")
plt.show()

cell = (xs[1] - xs[0]) * (ys[1] - ys[0])
test = moons.sample(jax.random.key(5), 2000)
gap = np.asarray(moons.log_prob(test)) - run.log_prob(test, solver="rk4", steps=25)
print(f"integral of the learned density over the window: {np.exp(learned).sum() * cell:.4f}")
print(f"KL(true, learned) = {gap.mean():.4f} +- {gap.std() / np.sqrt(len(gap)):.4f} nats")

# %% [markdown]
# The integral near 1 checks solver, divergence and normalisation at once; the gap to the entropy of the data is
# the only part that more training can improve.
#
# ## 4. Bits per dimension, with caution
#
# Images are integers, and a density on integers can be made arbitrarily large: put a narrow peak on each of the
# $K$ levels. Here is one pixel with 256 equally likely levels, whose true information is 8 bits. The model is a
# mixture of peaks of width $s$ at the integers.

# %%
widths = np.geomspace(0.02, 2, 25)
levels, shift = np.arange(256), np.random.default_rng(0).uniform(0, 1, (256, 16))
density = lambda x, s: norm.pdf(x[..., None], levels + 0.5, s).mean(-1)
raw = [-np.log2(density(levels + 0.5, s)).mean() for s in widths]
dequantised = [-np.log2(np.maximum(density(levels[:, None] + shift, s), 1e-300)).mean() for s in widths]
discrete = [
    -np.log2(
        (norm.cdf(levels[:, None] + 1, levels + 0.5, s) - norm.cdf(levels[:, None], levels + 0.5, s)).mean(1)
    ).mean()
    for s in widths
]
figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.semilogx(widths, raw, label="density at the integers (wrong)")
ax.semilogx(widths, dequantised, label="uniform dequantisation (a bound)")
ax.semilogx(widths, discrete, label="discrete probability")
ax.axhline(8, color="0.5", ls="--", label="entropy")
ax.set(xlabel="width $s$ of the peaks", ylabel="bits per dimension", ylim=(2, 14), title="one pixel, 256 levels")
ax.grid(alpha=0.3)
ax.legend()
plt.show()

# %% [markdown]
# The first curve falls without bound below the entropy: it measures how well the model knows that pixels are
# integers. *Uniform dequantisation* adds $u \sim U[0, 1)$ to each integer; by Jensen's inequality
#
# $$\log P(k) = \log \int_0^1 p(k + u)\,du \;\ge\; \mathbb E_u \log p(k + u),$$
#
# so that the result is an honest upper bound on the bits. If the model sees $y = a x + b$ instead of integers,
# $\log p(x) = \log p(y) + D \log |a|$, and
#
# $$\text{bits/dim} = -\frac{\log p(x)}{D \log 2} .$$
#
# `flowjax likelihood` and `flowjax.inference.log_prob` do both for images. Other traps: a conditional model scored
# without its condition, a guided field, a loose tolerance, and the number itself: good bits per dimension do not
# imply good samples, nor the reverse.
#
# **Exercises.**
#
# 1. Show that $\operatorname{Var}[\epsilon^\top J \epsilon]$ has the form above, and that Gaussian $\epsilon$ have
#    a larger one.
# 2. Score `run` with `solver="euler"` and 25, 50, 100 steps. Is the integral of the density still 1? Why not?
# 3. `docs/howto/likelihood.md` lists the options of the command line. Score the digits of notebook 4 with
#    `divergence="exact"`.
