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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/flowjax/blob/main/experiments/notebooks/02_flow_matching.ipynb)
#
# # Flow matching: sixty lines, then a library
#
# A generative model turns noise $x_0 \sim p_0 = \mathcal N(0, I)$ into data $x_1 \sim p_1$. A *flow* does it with
# an ordinary differential equation,
#
# $$\frac{dx_t}{dt} = v_\theta(t, x_t), \qquad x_0 \sim p_0, \qquad 0 \le t \le 1 .$$
#
# In this notebook we train $v_\theta$ three times: with a file of about sixty lines in plain JAX, Flax NNX and
# optax; with the parts of flowjax in our own loop; and with `flowjax.train`. Everything runs on a CPU in about a
# minute.
#
# **Convention.** $t = 0$ is the source (noise) and $t = 1$ the data, here and in all of flowjax.

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

plt.rcParams["figure.dpi"] = 64

# %% [markdown]
# ## The idea in three equations
#
# 1. Draw a noise sample $x_0$ and a data sample $x_1$ independently, and connect them by a straight line:
#
# $$x_t = (1 - t)\, x_0 + t\, x_1, \qquad \frac{d x_t}{dt} = x_1 - x_0 .$$
#
# 2. The velocity field that transports $p_0$ to $p_1$ is the average velocity of all lines through the point $x$:
#
# $$v(t, x) = \mathbb E\,[\,x_1 - x_0 \mid x_t = x\,].$$
#
# 3. A conditional expectation is the minimiser of a squared error, so we obtain it by regression. This is the
#    *conditional flow matching* loss:
#
# $$L(\theta) = \mathbb E_{t, x_0, x_1} \left\| v_\theta(t, x_t) - (x_1 - x_0) \right\|^2 .$$
#
# There is nothing else in flow matching. Notebook 3 proves step 2 and measures it.
#
# ## Part 1: the whole method in one cell
#
# The data are eight Gaussians on a circle. The network is a multilayer perceptron of $(x, t)$.


# %%
def sample_data(key, n):
    """n points of eight Gaussians on a circle of radius 4."""
    key_mode, key_noise = jax.random.split(key)
    angle = jax.random.randint(key_mode, (n,), 0, 8) * jnp.pi / 4
    return 4 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) + 0.4 * jax.random.normal(key_noise, (n, 2))


class Velocity(nnx.Module):
    """A network v(t, x)."""

    def __init__(self, width, rngs):
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in [(4, width), (width, width), (width, width)]])
        self.out = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, t, x):
        angle = jnp.pi * jnp.broadcast_to(t, x.shape[:1])[:, None]
        h = jnp.concatenate([x, jnp.cos(angle), jnp.sin(angle)], -1)
        for layer in self.layers:
            h = jax.nn.silu(layer(h))
        return self.out(h)


def loss_of(network, key, batch=512):
    """The conditional flow matching loss."""
    key_t, key_0, key_1 = jax.random.split(key, 3)
    t = jax.random.uniform(key_t, (batch, 1))
    x0, x1 = jax.random.normal(key_0, (batch, 2)), sample_data(key_1, batch)
    return jnp.mean((network(t[:, 0], (1 - t) * x0 + t * x1) - (x1 - x0)) ** 2)


@nnx.jit(static_argnames="steps")
def train(network, optimizer, key, steps):
    """Takes optimizer steps in one compiled loop, and returns their losses."""

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def step(carry, key):
        network, optimizer = carry
        loss, gradients = nnx.value_and_grad(loss_of)(network, key)
        optimizer.update(network, gradients)
        return carry, loss

    return step((network, optimizer), jax.random.split(key, steps))[1]


@nnx.jit(static_argnames="steps")
def integrate(network, x, steps=100):
    """Heun's method from noise to data; returns the states at all times, (steps + 1, n, 2)."""

    def step(x, t):
        v = network(t, x)
        x = x + 0.5 / steps * (v + network(t + 1 / steps, x + v / steps))
        return x, x

    return jnp.concatenate([x[None], jax.lax.scan(step, x, jnp.arange(steps) / steps)[1]])


network = Velocity(64, nnx.Rngs(0))
optimizer = nnx.Optimizer(network, optax.adam(optax.cosine_decay_schedule(4e-3, 2000)), wrt=nnx.Param)
losses = np.asarray(train(network, optimizer, jax.random.key(1), 2000))
states = np.asarray(integrate(network, jax.random.normal(jax.random.key(2), (2000, 2))))

# %% [markdown]
# The loss does not go to zero: its minimum is $\mathbb E\,\|(x_1 - x_0) - v(t, x_t)\|^2$, the variance of the
# target given
# $x_t$. A small loss is not the sign of a good model here; *flat* is. The samples tell the truth.

# %%
truth = np.asarray(sample_data(jax.random.key(3), 2000))


def show(axes, points, title, **style):
    axes.scatter(*np.asarray(points).T, s=2, alpha=0.5, **style)
    axes.set(xlim=(-6, 6), ylim=(-6, 6), aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title=title)


figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
axes[0].plot(losses, lw=0.3, color="0.7")
axes[0].plot(np.arange(49, 2000), np.convolve(losses, np.ones(50) / 50, "valid"))
axes[0].set(xlabel="step", ylabel="loss", title="conditional flow matching loss")
axes[1].plot(*states[:, :150].transpose(2, 0, 1), lw=0.4, color="0.6", zorder=0)
show(axes[1], states[0, :150], "trajectories (black: noise)", color="k")
show(axes[1], states[-1, :150], "trajectories (black: noise)", color="tab:blue")
show(axes[2], truth, "samples (blue) and data (orange)", color="tab:orange")
show(axes[2], states[-1], "samples (blue) and data (orange)", color="tab:blue")
plt.show()

# %% [markdown]
# **Remarks.**
#
# - The trajectories are curved although every conditional path is a straight line: where lines cross, the field is
#   their average.
# - *Try it:* replace `(1 - t) * x0 + t * x1` by `cos(pi t / 2) x0 + sin(pi t / 2) x1`. What is the new target?
#   (The time derivative of the path, always.)
# - *Try it:* integrate with one Euler step. Where do the samples land, and why is it the mean of the data for
#   every $x_0$?
#
# ## Part 2: the parts of flowjax in your own loop
#
# Each line of the file above has a counterpart that you can exchange separately.
# `sample_location_and_conditional_flow` returns the regression problem for *any* path and coupling. With
# `MinibatchOT`, noise and data of a batch are paired by optimal transport (Tong et al. 2024), which makes the
# trajectories nearly straight.

# %%
import flowjax

path = flowjax.paths.AffinePath(flowjax.schedules.CondOT())
coupling = flowjax.couplings.MinibatchOT()
graph, params = nnx.split(flowjax.models.MLP((2,), width=64, depth=3, rngs=nnx.Rngs(0)))
adam = optax.adam(optax.cosine_decay_schedule(4e-3, 1500))


def velocity(params, t, x):
    return nnx.merge(graph, params)(t, x)


@jax.jit
def update(params, moments, key):
    key_0, key_1, key_flow = jax.random.split(key, 3)
    x0, x1 = jax.random.normal(key_0, (256, 2)), sample_data(key_1, 256)
    t, x_t, dx_t = flowjax.sample_location_and_conditional_flow(key_flow, x0, x1, path, coupling)
    loss, gradients = jax.value_and_grad(lambda p: jnp.mean((velocity(p, t, x_t) - dx_t) ** 2))(params)
    updates, moments = adam.update(gradients, moments)
    return optax.apply_updates(params, updates), moments, loss


moments = adam.init(params)
for i in range(1500):
    params, moments, loss = update(params, moments, jax.random.fold_in(jax.random.key(4), i))
print(f"loss {float(loss):.3f}: far below that of part 1, as the pairs of a batch are close to each other")

# %% [markdown]
# Every solver of the library takes a function `v(t, x, cond)`. A fixed number of steps or an adaptive solver is a
# choice of one argument; `nfe` counts the evaluations of the network.

# %%
x0 = jax.random.normal(jax.random.key(2), (2000, 2))
field = lambda t, x, cond: velocity(params, t, x)
independent = lambda t, x, cond: network(t, x)
figure, axes = plt.subplots(1, 4, figsize=(14, 3.7), layout="constrained")
for row, (name, v) in enumerate({"independent": independent, "optimal transport": field}.items()):
    for column, options in enumerate(({"solver": "euler", "steps": 2}, {"solver": "dopri5"})):
        x1, stats = flowjax.solvers.solve_ode(v, x0, **options)
        title = f"{name}\n{options['solver']}, {float(stats.nfe.mean()):.0f} evaluations"
        show(axes[2 * row + column], x1, title)
plt.show()

# %% [markdown]
# With two Euler steps, the flow of the optimal transport coupling already reaches the ring of modes. That of the
# independent coupling does not.
#
# ## Part 3: `flowjax.train`
#
# A *config* holds all choices: data, path, coupling, prediction, network, optimizer. `flowjax.train` compiles the
# loop, keeps an exponential moving average of the parameters, writes checkpoints and figures into a folder, and
# resumes after an interruption. It returns a run, which samples and scores. `LiveLoss` draws the loss while it
# trains.

# %%
changes = {
    "train.steps": 2500,
    "train.batch_size": 512,
    "train.warmup": 5e4,
    "train.log_every": 250,
    "train.save_every": 2500,
}
run = flowjax.train("gaussians8", changes=changes, callback=flowjax.notebook.LiveLoss())
run

# %% [markdown]
# The density follows from the same field by the change of variables (notebook 5). Here it is beside the true one:

# %%
xs = np.linspace(-8, 8, 60)
grid = np.stack(np.meshgrid(xs, xs), -1).reshape(-1, 2)
learned = run.log_prob(grid, solver="rk4", steps=25)
exact = flowjax.data.densities.eight_gaussians().log_prob(jnp.asarray(grid))
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for ax, log_p, title in zip(axes, (exact, learned), ("true density", "learned density"), strict=True):
    image = ax.imshow(np.exp(log_p).reshape(60, 60), origin="lower", extent=(-8, 8, -8, 8), vmin=0, vmax=0.065)
    ax.set(xlabel="$x_1$", ylabel="$x_2$", title=title)
figure.colorbar(image, ax=axes, label="$p(x)$")

x = flowjax.data.densities.eight_gaussians().sample(jax.random.key(5), 2000)
gap = np.mean(
    np.asarray(flowjax.data.densities.eight_gaussians().log_prob(x)) - run.log_prob(x, solver="rk4", steps=25)
)
print(f"KL(true, learned) is about {gap:.3f} nats")

# %% [markdown]
# **Exercises.**
#
# 1. Train with `changes | {"coupling.name": "ot"}` and compare `run.sample(2000, solver="euler", steps=2)`.
# 2. Train with `{"data.name": "checkerboard"}`. Which part of the density is hardest to learn, and does a wider
#    network help more than more steps?
# 3. The command line does the same: `flowjax train --config gaussians8 --workdir runs/g8
#    --config.train.steps=2500`.
