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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/flowjax/blob/main/experiments/notebooks/01_odes_sdes_langevin.ipynb)
#
# # ODEs, SDEs and Langevin dynamics
#
# Flow models simulate an ordinary differential equation (ODE), diffusion models a stochastic one (SDE):
#
# $$dX_t = u(t, X_t)\,dt \qquad\text{and}\qquad dX_t = u(t, X_t)\,dt + g(t)\,dW_t .$$
#
# Before any network is trained, we learn to simulate both, and to check a simulation against what is known
# exactly. The notebook needs no training and runs in about a minute.

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
import jax.scipy.linalg
import matplotlib.pyplot as plt
import numpy as np

import flowjax

plt.rcParams["figure.dpi"] = 64

# %% [markdown]
# ## 1. ODEs and their flows
#
# A velocity field $u$ moves every point: $\frac{d}{dt} X_t = u(t, X_t)$. The *flow* is the map from the start to
# the state at time $t$. For a linear field $u(x) = A x$ it is $\psi_t(x) = e^{tA} x$, which makes a good test.
#
# The Euler method follows the tangent, $X_{t+h} = X_t + h\,u(t, X_t)$. In JAX the loop is a `lax.scan`, and one
# call moves a whole batch of points.

# %%
A = jnp.array([[-0.4, -3.0], [3.0, -0.4]])


def spiral(t, x, cond=None):
    return x @ A.T


def euler(u, x, steps, t1=1.0):
    """The states at all steps, (steps + 1, n, 2)."""
    h = t1 / steps

    def step(x, t):
        x = x + h * u(t, x)
        return x, x

    return jnp.concatenate([x[None], jax.lax.scan(step, x, h * jnp.arange(steps))[1]])


start = jnp.array([[2.0, 0.0], [0.0, 1.5], [-1.0, -1.0]])
exact = lambda t: start @ jax.scipy.linalg.expm(t * A).T
times = np.linspace(0, 1, 101)
truth = np.stack([exact(t) for t in times])

side = np.linspace(-2.5, 2.5, 15)
grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for ax, steps in zip(axes, (8, 64), strict=True):
    path = np.asarray(euler(spiral, start, steps))
    ax.quiver(*grid.T, *np.asarray(spiral(0.0, grid)).T, color="0.8", width=0.004)
    ax.plot(*truth.transpose(2, 0, 1), "k", lw=1)
    ax.plot(*path.transpose(2, 0, 1), "o-", ms=3, lw=1)
    ax.set(xlim=(-2.7, 2.7), ylim=(-2.7, 2.7), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    ax.set_title(f"Euler, {steps} steps (black: exact)")

# %% [markdown]
# **Order of convergence.** A method has order $p$ if its error at $t = 1$ shrinks like $h^p$. flowjax has many
# methods behind one function; `field(t, x, cond)` is the velocity.

# %%
names, counts = ("euler", "midpoint", "bosh3", "rk4"), (8, 16, 32, 64, 128)
figure, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
for name in names:
    errors = []
    for steps in counts:
        x, _ = flowjax.solvers.solve_ode(spiral, start, solver=name, steps=steps)
        errors.append(float(jnp.abs(x - exact(1.0)).max()))
    slope = -np.polyfit(np.log(counts[:3]), np.log(errors[:3]), 1)[0]
    ax.loglog(counts, errors, "o-", label=f"{name}: slope {slope:.1f}")
ax.set(xlabel="steps", ylabel="error at $t = 1$", title="convergence of ODE solvers")
ax.set_xticks(counts, labels=counts)
ax.set_xticks([], minor=True)
ax.grid(alpha=0.3, which="both")
ax.legend()
plt.show()

x, stats = flowjax.solvers.solve_ode(spiral, start, rtol=1e-5, atol=1e-5)
print("adaptive dopri5: error", f"{float(jnp.abs(x - exact(1.0)).max()):.1e},", "evaluations per point", stats.nfe)

# %% [markdown]
# *Remark.* The curve of `rk4` ends at the rounding of float32, near $10^{-7}$ of the state. *Exercise:* `rk4` has four
# evaluations per step and `euler` one. Draw the error against evaluations instead; which method is best at 16
# evaluations?
#
# ## 2. Brownian motion
#
# Brownian motion $W_t$ has independent increments $W_{t+h} - W_t \sim \mathcal N(0, h)$ and starts at 0. Its paths
# are continuous but nowhere smooth: $\operatorname{Var} W_t = t$, so a typical increment is $\sqrt h$, much larger
# than $h$. The sum of *squared* increments on $[0, T]$ converges to $T$, while the sum of absolute increments
# grows like $h^{-1/2}$.

# %%
steps, n = 1024, 4000
increments = jnp.sqrt(1 / steps) * jax.random.normal(jax.random.key(0), (steps, n))
W = np.concatenate([np.zeros((1, n)), np.cumsum(increments, 0)])
t = np.linspace(0, 1, steps + 1)

figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
axes[0].plot(t, W[:, :12], lw=0.7)
axes[0].plot(t, 2 * np.sqrt(t), "k--", t, -2 * np.sqrt(t), "k--", lw=1)
axes[0].set(xlabel="$t$", ylabel="$W_t$", title="paths; dashed: $\\pm 2\\sqrt{t}$")
axes[1].plot(t, W.var(1), label="sample variance")
axes[1].plot(t, t, "k--", label="$t$")
axes[1].set(xlabel="$t$", ylabel="variance", title=f"variance of {n} paths")
axes[1].legend()
coarse = [2**k for k in range(3, 11)]
moves = [np.diff(W[:: steps // k], axis=0) for k in coarse]
axes[2].loglog(coarse, [np.abs(d).sum(0).mean() for d in moves], "o-", label="sum of $|\\Delta W|$")
axes[2].loglog(coarse, [(d**2).sum(0).mean() for d in moves], "o-", label="sum of $(\\Delta W)^2$")
axes[2].set(xlabel="increments on [0, 1]", ylabel="sum", title="variation of a path")
axes[2].legend()
plt.show()

# %% [markdown]
# ## 3. SDEs: the Ornstein-Uhlenbeck process
#
# The Euler-Maruyama method adds to each Euler step a Gaussian of the right size,
#
# $$X_{t+h} = X_t + h\,u(t, X_t) + \sqrt h\,g(t)\,\varepsilon, \qquad \varepsilon \sim \mathcal N(0, I).$$
#
# The Ornstein-Uhlenbeck process $dX_t = -\theta X_t\,dt + \sigma\,dW_t$ is the SDE in which everything is known:
#
# $$X_t \mid x_0 \sim \mathcal N\Big(e^{-\theta t} x_0,\; \frac{\sigma^2}{2\theta}\big(1 - e^{-2\theta
# t}\big)\Big).$$
#
# It forgets its start and settles in $\mathcal N(0, \sigma^2 / 2\theta)$. It is also the noising process of
# diffusion models.


# %%
def euler_maruyama(u, g, x, key, steps, t1):
    """The states at all steps, (steps + 1, *shape of x), of dX = u(t, X) dt + g(t) dW."""
    h = t1 / steps

    def step(x, i):
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        x = x + h * u(i * h, x) + jnp.sqrt(h) * g(i * h) * noise
        return x, x

    return jnp.concatenate([x[None], jax.lax.scan(step, x, jnp.arange(steps))[1]])


theta, sigma, x0, t1 = 1.5, 1.0, 2.0, 4.0
drift, diffusion = (lambda t, x: -theta * x), (lambda t: sigma)
ou = np.asarray(euler_maruyama(drift, diffusion, jnp.full(5000, x0), jax.random.key(1), 200, t1))
t = np.linspace(0, t1, 201)
mean, var = x0 * np.exp(-theta * t), sigma**2 / (2 * theta) * (1 - np.exp(-2 * theta * t))

figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
axes[0].plot(t, ou[:, :12], lw=0.6)
axes[0].fill_between(
    t, mean - 2 * var**0.5, mean + 2 * var**0.5, color="k", alpha=0.15, lw=0, label="mean $\\pm$ 2 std"
)
axes[0].set(xlabel="$t$", ylabel="$X_t$", title="paths and exact moments")
axes[0].legend()
axes[1].hist(ou[-1], bins=50, density=True, alpha=0.5, label="paths at $t = 4$")
x = np.linspace(-2.5, 2.5, 200)
stationary = sigma**2 / (2 * theta)
axes[1].plot(x, np.exp(-(x**2) / (2 * stationary)) / np.sqrt(2 * np.pi * stationary), "k", label="stationary density")
axes[1].set(xlabel="$x$", ylabel="density", title="the start is forgotten")
axes[1].legend()
widths = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
ends = [euler_maruyama(drift, diffusion, jnp.zeros(40_000), jax.random.key(2), int(8 / h), 8.0)[-1] for h in widths]
axes[2].plot(widths, [float(e.var()) for e in ends], "o", label="simulated")
fine = np.linspace(0.02, 0.82, 50)
axes[2].plot(fine, stationary / (1 - theta * fine / 2), "k", label="$\\sigma^2/2\\theta \\,/\\, (1 - \\theta h/2)$")
axes[2].axhline(stationary, color="0.6", ls="--", label="exact SDE")
axes[2].set(xlabel="step $h$", ylabel="stationary variance", title="bias of Euler-Maruyama")
axes[2].legend()
plt.show()

# %% [markdown]
# The third panel shows the bias of a finite step. *Exercise:* derive the curve. (The variance $v$ of the discrete
# process satisfies $v = (1 - \theta h)^2 v + \sigma^2 h$.) What happens at $h = 2/\theta$?
#
# ## 4. Langevin dynamics: sampling from a density through its score
#
# For any density $p$, the SDE
#
# $$dX_t = \tfrac{\sigma^2}{2}\, \nabla \log p(X_t)\,dt + \sigma\,dW_t$$
#
# leaves $p$ invariant, and converges to it from any start. The field $\nabla \log p$ is the *score*. It needs no
# normalising constant. For $p = \mathcal N(0, \sigma^2/2\theta)$ the score is $-2\theta x/\sigma^2$, and Langevin
# dynamics *is* the Ornstein-Uhlenbeck process.
#
# Its weakness: between modes that are far apart it needs exponentially long.

# %%
near = flowjax.sources.GaussianMixture(jnp.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.6]]), 0.5)
far = flowjax.data.densities.eight_gaussians()


def langevin(density, x, key, steps, t1):
    score = jax.grad(lambda x: density.log_prob(x).sum())
    return euler_maruyama(lambda t, x: score(x), lambda t: jnp.sqrt(2.0), x, key, steps, t1)


def cloud(ax, points, title, limit):
    ax.scatter(*np.asarray(points).T, s=2, alpha=0.5, lw=0)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title=title)


figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained")
cloud(axes[0], near.sample(jax.random.key(3), 2000), "three close modes: exact", 3.2)
cloud(axes[1], langevin(near, jnp.zeros((2000, 2)), jax.random.key(4), 500, 10.0)[-1], "Langevin from 0", 3.2)
cloud(axes[2], far.sample(jax.random.key(3), 2000), "eight far modes: exact", 7.5)
one_mode = far.means[0] + jnp.zeros((2000, 2))
cloud(axes[3], langevin(far, one_mode, jax.random.key(4), 1000, 20.0)[-1], "Langevin from one mode", 7.5)
plt.show()

# %% [markdown]
# ## 5. The remedy: a path of densities
#
# Diffusion models do not sample from $p$ at once. They connect noise and data by densities $p_t$ that change
# slowly, and use the score of *each* of them. If $v(t, x)$ transports $p_0$ to $p_1$ as an ODE, then for every
# $g(t) \ge 0$ the SDE
#
# $$dX_t = \Big[ v(t, X_t) + \tfrac{g(t)^2}{2} \nabla \log p_t(X_t) \Big]\,dt + g(t)\,dW_t$$
#
# has the same marginals $p_t$: the added drift and the noise are Langevin dynamics for $p_t$, which changes
# nothing about
# $p_t$ itself. For Gaussian mixtures $v$ and the score are known exactly. flowjax calls this an *oracle*, and every
# sampler of the library takes it as it takes a trained network.

# %%
path = flowjax.paths.GaussianPath(flowjax.schedules.CondOT())
oracle = flowjax.oracles.mixture(path, far)
noise = jax.random.normal(jax.random.key(5), (2000, 2))
states = {}
for name, solver, g in (
    ("ODE, $g = 0$", "euler", None),
    ("SDE, $g = 1$", "euler_maruyama", 1.0),
    ("SDE, $g = 3$", "euler_maruyama", 3.0),
):
    options = flowjax.solvers.Options(g=g)
    states[name], _ = flowjax.solvers.sample(
        oracle, noise, solver=solver, steps=200, key=jax.random.key(6), options=options, save=True
    )

figure, axes = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
for ax, (name, x) in zip(axes, states.items(), strict=True):
    x = np.asarray(x)
    ax.plot(*x[:, :6].transpose(2, 0, 1), lw=0.6, zorder=2)
    cloud(ax, x[-1], f"{name}: samples and six trajectories", 7.5)
    distance = np.linalg.norm(x[-1][:, None] - np.asarray(far.means), axis=-1)
    print(f"{name}: shares of the modes", np.bincount(distance.argmin(1), minlength=8) / x.shape[1])
plt.show()

# %% [markdown]
# All eight modes have their share of 1/8, with and without noise. Compare with section 4: the trajectories choose
# their mode early, while $p_t$ is still one blob.
#
# **Exercises.**
#
# 1. Start section 5 at all points in one place, `noise * 0 + 1`. Why does the SDE with $g = 3$ still find several
#    modes, and the ODE only one?
# 2. `flowjax.solvers.SAMPLERS` lists the samplers. Try `pc` (predictor-corrector): which of its two halves is
#    Langevin dynamics?
# 3. Write the reverse of the Ornstein-Uhlenbeck process as an SDE in increasing $t$. Which $g$ is it on the path
#    `flowjax.schedules.VP()`? (See `flowjax.solvers.diffusions.Canonical`.)
#
# Next: notebook 2 learns the field $v$ from samples.
