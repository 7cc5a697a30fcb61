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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/flowjax/blob/main/experiments/notebooks/04_digits_and_guidance.ipynb)
#
# # Digits and classifier-free guidance
#
# We train a class-conditional flow on scikit-learn's digits (1,797 images of 8 x 8 pixels), draw the digit that we
# ask for, and see what guidance does: it trades diversity for typicality. It runs in one to two minutes.

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
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import flowjax

plt.rcParams["figure.dpi"] = 64

# %% [markdown]
# ## 1. Conditional flow matching
#
# The network gets the label $y$ as a further input, and the loss is the old one with pairs $(x_1, y)$:
#
# $$L(\theta) = \mathbb E_{t, x_0, (x_1, y)} \left\| v_\theta(t, x_t \mid y) - (x_1 - x_0) \right\|^2 .$$
#
# For guidance the same network must also know the field *without* a label. So the label is dropped in a share
# $\eta$ of the examples and replaced by a null label $\varnothing$: $v_\theta(t, x \mid \varnothing) \approx v(t,
# x)$.
#
# The config `digits` has `data.cond = ("label",)` and `data.cond_dropout = 0.1`. We train half as long as the
# config says.

# %%
changes = {"model.width": 256, "train.steps": 2000, "train.log_every": 200, "train.save_every": 2000}
run = flowjax.train("digits", changes=changes, callback=flowjax.notebook.LiveLoss())
run

# %% [markdown]
# `run.sample` returns pixels from 0 to 16, as in the data. `label` chooses one class for all samples; without it
# each sample draws its class.


# %%
def show(ax, images, title):
    """A sheet of images, (rows, columns, 8, 8)."""
    rows, columns = images.shape[:2]
    padded = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=16)
    ax.imshow(
        padded.swapaxes(1, 2).reshape(rows * 9, columns * 9), cmap="gray", vmin=0, vmax=16, interpolation="nearest"
    )
    ax.set(title=title, xticks=[], yticks=[])


heun = {"solver": "heun", "steps": 20}
digits = load_digits()
real = np.stack([digits.images[digits.target == k][:8] for k in range(10)])
drawn = np.stack([run.sample(8, seed=k, label=k, **heun)[..., 0] for k in range(10)])
figure, axes = plt.subplots(1, 2, figsize=(8.5, 5.2), layout="constrained")
show(axes[0], real, "data")
show(axes[1], drawn, "samples, one class in each row")
plt.show()

# %% [markdown]
# ## 2. Classifier-free guidance by hand
#
# By Bayes' rule the conditional score is $\nabla\log p_t(x \mid y) = \nabla\log p_t(x) + \nabla\log p_t(y \mid
# x)$. Guidance multiplies the last term, the gradient of an implicit classifier, by $w$. On a Gaussian path the
# velocity is linear in the score, so the same holds for velocities:
#
# $$\tilde v(t, x \mid y) = v(t, x \mid \varnothing) + w\,\big[v(t, x \mid y) - v(t, x \mid \varnothing)\big].$$
#
# $w = 0$ is unconditional, $w = 1$ conditional and $w > 1$ *guided*. Two evaluations and one line:

# %%
model = run.model()  # works on normalised images
NULL = flowjax.conditions.NO_LABEL  # -1


def guided(w):
    def velocity(t, x, cond):
        without = {"label": jnp.full_like(cond["label"], NULL)}
        conditional, unconditional = model.velocity(t, x, cond), model.velocity(t, x, without)
        return unconditional + w * (conditional - unconditional)

    return velocity


labels = {"label": jnp.arange(10)}
noise = run.prior.sample(jax.random.key(0), 10)
by_hand, _ = flowjax.solvers.solve_ode(guided(3.0), noise, cond=labels, solver="heun", steps=20)
guide = flowjax.guidance.ClassifierFree(model, 3.0, run.fields)
library, _ = flowjax.solvers.sample(guide, noise, cond=labels, solver="heun", steps=20)
print(f"largest difference to flowjax.guidance.ClassifierFree: {float(jnp.abs(by_hand - library).max()):.1e}")

# %% [markdown]
# A guide is a model like any other, so that every sampler takes it. For a run it is an argument:
# `guide=Guide("cfg", scale)`.
#
# ## 3. What guidance does
#
# The same noise, more and more guided. Look for what is lost.

# %%
scales = (0.0, 1.0, 2.0, 4.0, 8.0)
every = np.arange(10).repeat(40)  # 40 samples of each class
samples = {}
for w in scales:
    guide = None if w == 1 else flowjax.inference.Guide("cfg", w)
    samples[w] = run.sample(400, seed=1, cond={"label": every}, guide=guide, **heun)[..., 0].reshape(10, 40, 8, 8)

figure, axes = plt.subplots(1, 4, figsize=(12, 5), layout="constrained")
for ax, w in zip(axes, scales[1:], strict=True):
    show(ax, samples[w][:, :6], f"$w = {w:g}$")
plt.show()

# %% [markdown]
# Two numbers say it. *Fidelity:* the cross-entropy of a classifier, trained on the real digits, for the class that
# we asked for. *Diversity:* the share of the variance of the pixels that lies within the classes; the rest is
# between them. (The variance within classes alone would mislead: guided images have more contrast.)

# %%
classifier = LogisticRegression(max_iter=300, C=0.01).fit(digits.data[:1500], digits.target[:1500])


def fidelity(images, labels):
    probabilities = classifier.predict_proba(images.reshape(-1, 64))
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


def diversity(classes):
    pixels = [images.reshape(-1, 64) for images in classes]
    return np.mean([p.var(0).mean() for p in pixels]) / np.concatenate(pixels).var(0).mean()


data = [digits.images[digits.target == k] for k in range(10)]
references = fidelity(digits.data[1500:], digits.target[1500:]), diversity(data)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
axes[0].semilogy(scales, [fidelity(samples[w], every) for w in scales], "o-", label="samples")
axes[0].set(xlabel="guidance scale $w$", ylabel="cross-entropy (nats)", title="fidelity to the class (low is good)")
axes[1].plot(scales, [diversity(samples[w]) for w in scales], "o-", label="samples")
axes[1].set(
    xlabel="guidance scale $w$", ylabel="share of the variance", title="diversity within a class", ylim=(0, None)
)
for ax, reference in zip(axes, references, strict=True):
    ax.axhline(reference, color="0.5", ls="--", label="data")
    ax.grid(alpha=0.3)
    ax.legend()
plt.show()

# %% [markdown]
# $w = 0$ ignores the label, so that the classifier is mostly wrong and the classes are alike. $w = 1$ is the model
# of the data, and near it. Above it samples become typical, and alike. Guided samples do *not* follow $p(x \mid
# y)^w p(x)^{1-w}$ either: the guided field is not the velocity of the path of that density. Likelihoods of guided
# models are therefore meaningless, and flowjax refuses them.
#
# **Guidance in an interval** (Kynkäänniemi et al. 2024) applies $w$ only at the times where it helps, and keeps
# more diversity:

# %%
for interval in ((0.0, 1.0), (0.3, 0.8)):
    guide = flowjax.inference.Guide("cfg", 4.0, interval=interval)
    x = run.sample(400, seed=1, cond={"label": every}, guide=guide, **heun)[..., 0].reshape(10, 40, 8, 8)
    print(f"w = 4 for t in {interval}: cross-entropy {fidelity(x, every):.4f}, diversity {diversity(x):.3f}")

# %% [markdown]
# **Exercises.**
#
# 1. Draw `run.sample(8, label=3, guide=flowjax.inference.Guide("cfg", -1.0))`. What does a negative scale ask for?
# 2. Train with `{"data.cond_dropout": 0.5}`. Which of the two fields becomes worse?
# 3. A saturated image is a sign of a large $w$. Try `rescale=0.7` (Lin et al. 2024) in the `Guide`, and explain
#    what it keeps.
# 4. On the command line: `flowjax sample --workdir ... --num 64 --label 7 --guidance cfg --scale 2 --out
#    sevens.npz`.
