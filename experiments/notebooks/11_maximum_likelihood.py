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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/flowjax/blob/main/experiments/notebooks/11_maximum_likelihood.ipynb)
#
# # Maximum likelihood and change of variables
#
# Notebook 5 computed the density of a trained flow. Here the density is what we train: an affine coupling by hand,
# splines with flowjax, and a continuous normalizing flow, whose computed likelihood is wrong if its solver takes too
# few steps. At the end a flow is the proposal of an importance sampler, which corrects its errors and gives the free
# energy of a double well. It takes about two minutes on a CPU.

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
import optax

import flowjax
from flowjax.config import defaults
from flowjax.data.densities import DENSITIES
from flowjax.free_energy import importance_sample, importance_sample_sde, log_normalizer

plt.rcParams["figure.dpi"] = 64
folder = Path(tempfile.mkdtemp(prefix="flowjax-"))
moons = DENSITIES["moons"]()
test = moons.sample(jax.random.key(99), 2000)
entropy = float(-moons.log_prob(test).mean())

# %% [markdown]
# ## 1. An affine coupling by hand
#
# Let $z = f(x)$ be invertible, and $z$ standard normal. Then $\log p(x) = \log \mathcal N(f(x)) + \log |\det
# \partial f / \partial x|$, and the mean of $-\log p$ over data is a loss without any simulation. A *coupling* keeps
# one coordinate and moves the other by a network of the first:
#
# $$z_1 = x_1, \qquad z_2 = (x_2 - m(x_1))\, e^{-s(x_1)}, \qquad \log |\det| = -s(x_1).$$
#
# The next coupling exchanges the roles.


# %%
def init(key, layers=6, width=32):
    """Weights of the networks (1 -> width -> width -> 2) of all couplings."""
    shapes = ((1, width), (width, width), (width, 2))
    keys = jax.random.split(key, 3 * layers).reshape(layers, 3)
    scale = (1.0, width**-0.5, 1e-2 * width**-0.5)
    return [
        [(a * jax.random.normal(k, shape), jnp.zeros(shape[1])) for k, shape, a in zip(ks, shapes, scale, strict=True)]
        for ks in keys
    ]


def network(weights, x):
    for w, b in weights[:-1]:
        x = jnp.tanh(x @ w + b)
    return x @ weights[-1][0] + weights[-1][1]


def to_source(params, x):
    """z and the logarithm of the determinant of dz / dx."""
    log_det = jnp.zeros(len(x))
    for i, weights in enumerate(params):
        kept, moved = x[:, i % 2], x[:, 1 - i % 2]
        shift, scale = network(weights, kept[:, None]).T
        moved = (moved - shift) * jnp.exp(-scale)
        x = jnp.stack([kept, moved] if i % 2 == 0 else [moved, kept], -1)
        log_det -= scale
    return x, log_det


def log_p(params, x):
    z, log_det = to_source(params, x)
    return -0.5 * (z**2).sum(-1) - jnp.log(2 * jnp.pi) + log_det


optimizer = optax.adam(3e-3)


@jax.jit
def train(params, key):
    def step(carry, key):
        params, state = carry
        loss, slope = jax.value_and_grad(lambda p: -log_p(p, moons.sample(key, 512)).mean())(params)
        change, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, change), state), loss

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 2000))
    return params, losses


params, losses = train(init(jax.random.key(0)), jax.random.key(1))
jacobian = jax.vmap(jax.jacfwd(lambda x: to_source(params, x[None])[0][0]))(test[:100])
exact = jnp.linalg.slogdet(jacobian)[1]
error = float(jnp.abs(to_source(params, test[:100])[1] - exact).max())
print(f"log-determinant against automatic differentiation: {error:.1e}")
print(f"-log p on test points: {float(-log_p(params, test).mean()):.3f} nats; the entropy is {entropy:.3f}")

# %% [markdown]
# ## 2. Splines, with flowjax
#
# `method.flow` chooses the layers. Splines bend each coordinate more freely than an affine map.


# %%
def config(method, steps, **keys):
    """A config of a method on the moons."""
    config = defaults(method=method) if method == "normalizing_flow" else defaults("mlp", method=method)
    config.data.name = "moons"
    config.train.steps, config.train.batch_size, config.train.lr = steps, 256, 2e-3
    config.train.warmup, config.train.log_every, config.train.save_every = 0.1 * steps * 256, steps // 4, steps
    config.ema.half_life = 20.0 * 256
    return flowjax.config.changed(config, keys)


keys = {"method.flow": "spline", "method.layers": 2, "method.width": 32}
spline = flowjax.train(config("normalizing_flow", 600, **keys), folder / "spline", plots=False)
print(f"splines: {-spline.log_prob(np.asarray(test)).mean():.3f} nats, in one evaluation")

# %% [markdown]
# ## 3. A continuous flow, and steps that are too large
#
# `method.name=cnf` solves the ODE of a network backwards from the data in each step, with the integral of its
# divergence, and differentiates through the solver. Nothing restricts the network. But the loss is that of the
# *numerical* solution. With few large steps, the network learns velocities that the solver does not resolve, and the
# computed likelihood is above the true one. We train with two Euler steps, and score with adaptive ones.

# %%
tiny = {"model.width": 32, "model.depth": 2, "method.divergence": "exact", "train.lr": 1e-2}
coarse = flowjax.train(
    config("cnf", 240, **tiny, **{"method.solver": "euler", "method.steps": 2}), folder / "coarse", plots=False
)
by_euler = flowjax.likelihood.log_prob(coarse.model(), test, coarse.prior, solver="euler", steps=2)[0]
adaptive = flowjax.likelihood.log_prob(coarse.model(), test, coarse.prior, rtol=1e-4, atol=1e-4)[0]
print(f"-log p by two Euler steps: {float(-by_euler.mean()):.2f} nats")
print(f"-log p by adaptive steps: {float(-adaptive.mean()):.2f} nats; the entropy is {entropy:.2f}")

# %% [markdown]
# Adaptive steps, the default, keep the error of the likelihood near the tolerances. They cost tens of evaluations in
# each training step. Flow matching learns the same kind of model with one evaluation and no solver. `flowjax reproduce
# likelihoods` compares them for training times of the same order.
#
# ## 4. Free energies
#
# A particle in the potential $U(x, y) = \tfrac12 x^4 - 3 x^2 + \tfrac12 x + \tfrac12 y^2$ has the density $e^{-U} / Z$
# with an unknown $Z$; the free energy is $-\log Z$. We train flows on *wrong* samples, of which half are in each well.
# The density $q$ of a flow is known, so that importance weights $w = e^{-U(x)} / q(x)$ correct this:
# $Z = \mathbb E_q[w]$.


# %%
def minus_energy(x):
    return -(0.5 * x[:, 0] ** 4 - 3 * x[:, 0] ** 2 + 0.5 * x[:, 0]) - 0.5 * x[:, 1] ** 2


side = np.linspace(-4, 4, 8001)
boltzmann = np.exp(-(0.5 * side**4 - 3 * side**2 + 0.5 * side))
log_z = float(np.log(boltzmann.sum() * 1e-3) + 0.5 * np.log(2 * np.pi))
rng = np.random.default_rng(0)
wells = np.where(rng.random(4000) < 0.5, -1.8, 1.65)
points = np.stack([wells + 0.35 * rng.normal(size=4000), rng.normal(size=4000)], -1).astype(np.float32)
np.savez(folder / "wells.npz", x=points)
proposals = {}
for name, method, steps, more in (
    ("splines", "normalizing_flow", 800, keys | {"train.lr": 4e-3}),
    ("flow matching", "flow_matching", 2000, {"model.width": 64}),
):
    changes = {**more, "data.name": "npz", "data.path": str(folder / "wells.npz"), "data.normalise": "global"}
    proposals[name] = flowjax.train(config(method, steps, **changes), folder / f"wells_{method}", plots=False)

# %% [markdown]
# The flows live in normalised coordinates $u$, with $x = a u + b$, so that $Z = a^2 \int e^{-U(a u + b)} du$.

# %%
results, key = {}, jax.random.key(5)
for name, run in proposals.items():
    a = float(run.spec.normalise.scale)
    b = float(run.spec.normalise.shift)
    density = lambda u, a=a, b=b: minus_energy(a * u + b) + 2 * jnp.log(a)
    samples = {"ODE or bijection": importance_sample(density, run.model(), run.prior, key, 4000, rtol=1e-3, atol=1e-3)}
    if name == "flow matching":
        samples["SDE, 50 steps"] = importance_sample_sde(density, run.model(), run.prior, key, 4000, steps=50)
    for how, found in samples.items():
        result = log_normalizer(found.log_weights)
        left = float(jnp.sum(jax.nn.softmax(found.log_weights) * (found.x[:, 0] * a + b < 0)))
        results[f"{name}: {how}"] = (float(result.log_z), float(result.stderr))
        print(
            f"{name}, {how}: log Z = {float(result.log_z):.3f} +- {float(result.stderr):.3f} (exact {log_z:.3f}), "
            f"effective samples {float(result.ess) / 40:.0f}%, in the left well {100 * left:.1f}%"
        )
print(f"in the left well: exactly {100 * boltzmann[side < 0].sum() / boltzmann.sum():.1f}%, of the training data 50%")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
axes[0].plot(losses, lw=0.6, label="couplings by hand")
axes[0].axhline(entropy, color="0.4", ls="--", label="entropy")
axes[0].set(xlabel="step", ylabel="$-\\log p$ in nats", title="two moons", ylim=(3.7, 5))
axes[0].legend()
for i, (name, (value, error)) in enumerate(results.items()):
    axes[1].errorbar(i, value, 2 * error, fmt="o", capsize=4, label=name)
axes[1].axhline(log_z, color="0.4", ls="--", label="exact")
axes[1].set(xticks=(), ylabel="$\\log Z$, with two standard errors", title="double well")
axes[1].legend(fontsize=7)
plt.show()

# %% [markdown]
# **Exercises.**
#
# 1. The weights of a chain of the SDE are unbiased for any number of steps: compare 2, 10 and 50. Which has the most
#    effective samples for its evaluations?
# 2. Train the proposal on the right well alone. What do the estimate, its standard error and the effective sample
#    size say, and what is true?
# 3. Give the coarse CNF of section 3 a regularisation, `method.kinetic=0.1` and `method.jacobian=0.1`. Are the
#    two values of section 3 closer to each other?
