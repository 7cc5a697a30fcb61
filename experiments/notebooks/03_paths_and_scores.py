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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/flowjax/blob/main/experiments/notebooks/03_paths_and_scores.ipynb)
#
# # Probability paths, velocities and scores
#
# Flow matching and diffusion learn conditional expectations. In this notebook every one of them is known in closed
# form, so that each statement of the theory becomes a number that must be small:
#
# 1. the marginal velocity is the posterior average of the conditional velocities;
# 2. the same holds for the score;
# 3. on a Gaussian path, velocity and score determine each other;
# 4. the conditional loss, which we can compute, and the marginal loss, which we want, have the same gradient;
# 5. with the score, every SDE $dX = (v + \tfrac{g^2}{2}\nabla\log p_t)\,dt + g\,dW$ has the same marginals.
#
# It runs in about a minute.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("flowjax") is None:  # the package called flowjax on PyPI is a different library
    source = "flowjax-research[data,plots] @ git+https://github.com/OWNER/flowjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import flowjax
from flowjax.batch import Batch

plt.rcParams["figure.dpi"] = 64

# %% [markdown]
# ## 1. Conditional and marginal paths
#
# A *conditional path* moves noise to one data point $z$. The Gaussian path is
#
# $$p_t(x \mid z) = \mathcal N(\alpha_t z,\ \sigma_t^2 I), \qquad X_t = \alpha_t z + \sigma_t \varepsilon,$$
#
# with $\alpha_0 = \sigma_1 = 0$ and $\alpha_1 = \sigma_0 = 1$; here $\alpha_t = t$, $\sigma_t = 1 - t$. The
# *marginal path* mixes over the data, $p_t(x) = \int p_t(x \mid z)\,p_\mathrm{data}(z)\,dz$. If the data are a
# Gaussian mixture, so is $p_t$.

# %%
path = flowjax.paths.GaussianPath(flowjax.schedules.CondOT())
data = flowjax.sources.GaussianMixture(
    jnp.array([[-2.0, -1.5], [2.0, -1.5], [0.0, 2.0]]), 0.4, jnp.array([1.0, 1.0, 2.0])
)
oracle = flowjax.oracles.mixture(path, data)

z = jnp.array([2.0, -1.5])  # one data point
x0, x1 = jax.random.normal(jax.random.key(1), (1500, 2)), data.sample(jax.random.key(0), 1500)
figure, axes = plt.subplots(2, 4, figsize=(11, 5.6), layout="constrained", sharex=True, sharey=True)
for column, t in enumerate((0.0, 0.35, 0.7, 1.0)):
    conditional = path.sample(None, t, x0, jnp.broadcast_to(z, x0.shape)).x_t
    marginal = path.sample(None, t, x0, x1).x_t
    for row, points in enumerate((conditional, marginal)):
        ax = axes[row, column]
        ax.scatter(*np.asarray(points).T, s=2, alpha=0.4, lw=0, color=("tab:red", "tab:blue")[row])
        ax.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", title=f"{('conditional', 'marginal')[row]}, $t = {t}$")
        ax.set(xlabel="$x_1$" if row else "", ylabel="" if column else "$x_2$")
plt.show()

# %% [markdown]
# ## 2. The marginal velocity is an average
#
# The conditional velocity that moves $p_t(\cdot \mid z)$ is $u_t(x \mid z) = \dot\alpha_t z +
# \frac{\dot\sigma_t}{\sigma_t} (x - \alpha_t z)$. The velocity of the marginal path weighs each $z$ by its
# posterior probability:
#
# $$v(t, x) = \int u_t(x \mid z)\, \frac{p_t(x \mid z)\,p_\mathrm{data}(z)}{p_t(x)}\,dz = \mathbb E[u_t(x \mid Z)
# \mid X_t = x].$$
#
# *Proof.* Both $p_t(\cdot \mid z)$ satisfy the continuity equation $\partial_t p_t = -\nabla\cdot(p_t u_t)$;
# multiply by
# $p_\mathrm{data}(z)$, integrate, and divide the flux by $p_t$. The same average of the conditional scores $-(x -
# \alpha_t z)/\sigma_t^2$ gives the marginal score.
#
# We compute both averages with up to 100,000 data points and compare with the oracle, which knows the integral.


# %%
def averages(t, x, z):
    """Posterior averages of the conditional velocities and scores at x (n, 2), over data points z (N, 2)."""
    alpha, sigma = t, 1 - t
    log_weights = -((x[:, None] - alpha * z) ** 2).sum(-1) / (2 * sigma**2)
    weights = jax.nn.softmax(log_weights, axis=1)  # the posterior of the data points
    mean = weights @ z
    return mean - (x - alpha * mean) / sigma, -(x - alpha * mean) / sigma**2


t, points = 0.6, oracle.sample(jax.random.key(2), 0.6, 200, (2,))
one_batch = jax.jit(averages)
print("data points   error of the velocity   error of the score")
for n in (100, 1000, 10_000, 100_000):
    velocity, score = one_batch(t, points, data.sample(jax.random.key(3), n))
    error = lambda a, b: float(jnp.sqrt(((a - b) ** 2).mean() / (b**2).mean()))
    print(
        f"{n:11,}   {error(velocity, oracle.velocity(t, points)):21.4f}   {error(score, oracle.score(t, points)):18.4f}"
    )

# %% [markdown]
# The errors fall like $N^{-1/2}$. The same fields as pictures: the conditional field points to $z$ everywhere; the
# marginal field decides, at each place, between the modes.

# %%
side = np.linspace(-3.6, 3.6, 17)
grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), jnp.float32)
fields = {
    "conditional velocity $u_t(x|z)$": z - (grid - t * z) / (1 - t),
    "marginal velocity $v(t, x)$": oracle.velocity(t, grid),
    "marginal score": oracle.score(t, grid),
}
density = np.exp(oracle.log_prob(t, grid)).reshape(17, 17)
figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
for ax, (title, field) in zip(axes, fields.items(), strict=True):
    ax.contourf(side, side, density, levels=8, cmap="Blues", alpha=0.6)
    ax.quiver(*np.asarray(grid).T, *np.asarray(field).T, width=0.004)
    ax.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title=f"{title}, $t = {t}$")
plt.show()

# %% [markdown]
# ## 3. Velocity and score determine each other
#
# $X_t = \alpha_t Z + \sigma_t \varepsilon$ is linear, so it holds for posterior means as well: $x =
# \alpha_t\,\mathbb E[Z \mid x] + \sigma_t\,\mathbb E[\varepsilon \mid x]$. With Tweedie's formula $\mathbb
# E[\varepsilon \mid x] = -\sigma_t \nabla\log p_t$,
#
# $$v = \dot\alpha_t\,\mathbb E[Z \mid x] + \dot\sigma_t\,\mathbb E[\varepsilon \mid x]
#     = \frac{\dot\alpha_t}{\alpha_t}\,x + \Big(\frac{\dot\alpha_t}{\alpha_t}\sigma_t^2 -
#     \sigma_t\dot\sigma_t\Big)\nabla\log p_t(x).$$
#
# Predicting noise, data, velocity or score is therefore one choice of coordinates for the same knowledge.

# %%
for schedule in (flowjax.schedules.CondOT(), flowjax.schedules.Cosine(), flowjax.schedules.VP()):
    exact = flowjax.oracles.mixture(flowjax.paths.GaussianPath(schedule), data)
    r = flowjax.schedules.rates(schedule, 0.4)
    x = exact.sample(jax.random.key(4), 0.4, 500, (2,))
    score = jax.grad(lambda x, exact=exact: exact.log_prob(0.4, x).sum())(x)  # by automatic differentiation
    from_score = r.dalpha / r.alpha * x + (r.dalpha / r.alpha * r.sigma**2 - r.sigma * r.dsigma) * score
    difference = float(jnp.abs(from_score - exact.velocity(0.4, x)).max())
    print(f"{type(schedule).__name__:7s} largest difference {difference:.1e}")

# %% [markdown]
# ## 4. Flow matching and score matching by regression
#
# The *marginal* losses regress on $v(t, x)$ or the score, which nobody knows for real data. The *conditional*
# losses regress on $u_t(x \mid z)$ or the noise $\varepsilon$ (denoising score matching). They differ by a
# constant that does not depend on the network,
#
# $$L_\mathrm{cond}(\theta) = L_\mathrm{marg}(\theta) + \mathbb E\operatorname{Var}[u_t(X_t \mid Z) \mid X_t],$$
#
# so that their gradients agree. `flowjax.methods.flow_matching` has both losses as functions.

# %%
from flowjax.methods.flow_matching import conditional, marginal

graph, initial = nnx.split(flowjax.models.MLP((2,), width=64, depth=3, zero_init=False, rngs=nnx.Rngs(0)))
apply = lambda params, t, x, cond: nnx.merge(graph, params)(t, x)
source = flowjax.sources.Normal((2,))
losses = {"velocity": flowjax.predictions.velocity, "noise": flowjax.predictions.noise}

for name, prediction in losses.items():
    both = [
        jax.jit(jax.value_and_grad(loss))
        for loss in (
            conditional(apply, path, source, prediction=prediction),
            marginal(apply, path, source, oracle, prediction),
        )
    ]
    batch = Batch(data.sample(jax.random.key(5), 100_000))
    (a, da), (b, db) = (f(initial, jax.random.key(6), batch) for f in both)
    da, db = (jnp.concatenate([g.ravel() for g in jax.tree.leaves(d)]) for d in (da, db))
    print(
        f"{name:8s} conditional {float(a):.3f}, marginal {float(b):.3f}; "
        f"cosine of the gradients {float(da @ db / jnp.linalg.norm(da) / jnp.linalg.norm(db)):.5f}"
    )

# %% [markdown]
# Now we train one network for each target, with the conditional loss, and ask how far its velocity and its score
# are from the truth at each time. `predictions.read` turns a network into a model with velocity *and* score,
# whatever it predicts.


# %%
def train(prediction, steps=2000, rows=512):
    loss_of = conditional(apply, path, source, prediction=prediction)
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    @jax.jit
    def run(params, key):
        def step(carry, key):
            params, moments = carry
            key_data, key_loss = jax.random.split(key)
            gradients = jax.grad(loss_of)(params, key_loss, Batch(data.sample(key_data, rows)))
            updates, moments = adam.update(gradients, moments)
            return (optax.apply_updates(params, updates), moments), None

        return jax.lax.scan(step, (params, adam.init(params)), jax.random.split(key, steps))[0][0]

    params = run(initial, jax.random.key(7))
    return flowjax.predictions.read(lambda t, x, cond: apply(params, t, x, cond), path, prediction)


models = {name: train(prediction) for name, prediction in losses.items()}
times = np.linspace(0.03, 0.97, 25)
points = [oracle.sample(jax.random.key(8), float(t), 2000, (2,)) for t in times]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for ax, ability in zip(axes, ("velocity", "score"), strict=True):
    for name, model in models.items():
        field = jax.jit(lambda t, x, model=model, ability=ability: getattr(model, ability)(t, x))
        relative = [
            error(field(float(t), x), getattr(oracle, ability)(float(t), x)) for t, x in zip(times, points, strict=True)
        ]
        ax.semilogy(times, relative, label=f"network predicts the {name}")
    ax.set(xlabel="$t$", ylabel="relative error", title=f"error of the {ability}")
    ax.grid(alpha=0.3, which="both")
    ax.legend()
plt.show()

# %% [markdown]
# The two targets differ where the conversion divides by a small number: noise prediction is poor as a velocity
# near $t = 0$, where $x$ *is* the noise and tells nothing about the data ($1/\alpha_t$); velocity prediction is
# poor as a score near $t =
# 1$ ($1/\sigma_t$). flowjax restricts each prediction to the times at which it is well conditioned:

# %%
for name, model in models.items():
    print(f"{name}: defined for t in {tuple(round(float(t), 4) for t in model.interval)}")

# %% [markdown]
# ## 5. Sampling with noise
#
# With the score we may add noise *and* the drift that compensates it. With the exact fields the marginals do not
# depend on
# $g$. With a learned model, moderate noise corrects errors, and much noise needs many steps. We measure the
# distance between samples and data by the squared energy distance (zero for equal distributions).


# %%
@jax.jit
def energy_distance(x, y):
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|."""
    mean = lambda a, b: jnp.sqrt(((a[:, None] - b) ** 2).sum(-1) + 1e-12).mean()
    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


noise, truth = jax.random.normal(jax.random.key(9), (3000, 2)), data.sample(jax.random.key(10), 3000)
floor = float(energy_distance(data.sample(jax.random.key(11), 3000), truth))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
counts = (4, 16, 64)
for ax, (name, model) in zip(axes, {"oracle": oracle, "network (velocity)": models["velocity"]}.items(), strict=True):
    for g in (0.0, 1.0, 3.0):
        options = flowjax.solvers.Options(g=g)
        distances = []
        for steps in counts:
            x, _ = flowjax.solvers.sample(
                model, noise, solver="euler_maruyama", steps=steps, key=jax.random.key(12), options=options
            )
            distances.append(float(energy_distance(x, truth)))
        ax.loglog(counts, distances, "o-", label=f"$g = {g:g}$")
    ax.axhline(floor, color="0.5", ls="--", label="data against data")
    ax.set(xlabel="steps of Euler-Maruyama", ylabel="squared energy distance", title=name)
    ax.set_xticks(counts, labels=counts)
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3, which="both")
axes[0].legend()
plt.show()

# %% [markdown]
# **Exercises.**
#
# 1. Derive $u_t(x \mid z)$ from $X_t = \alpha_t z + \sigma_t \varepsilon$: differentiate in $t$, then express
#    $\varepsilon$ by $x$.
# 2. Replace `GaussianPath(CondOT())` by `GaussianPath(VP())` in the whole notebook. Which cells need a change?
# 3. Use `flowjax.solvers.diffusions.Sigma(1.0)` as `g` in section 5. It vanishes at the data; does it need fewer
#    steps?
# 4. Notebook 6 measures orders of convergence of samplers with the same oracle.
