"""The global norm and clipping of gradients against optax, and the number of reductions in the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.training.optimizers import clip, global_norm

TREE = {"large": jnp.arange(20_000.0).reshape(100, 200) / 1e4, **{f"b{i}": jnp.full(3 + i, 0.1 * i) for i in range(9)}}


def test_norm_is_that_of_all_numbers():
    everything = np.concatenate([np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(TREE)])
    # float32 sums of 20,000 squares, pairwise or in blocks: a few roundings each
    np.testing.assert_allclose(float(jax.jit(global_norm)(TREE)), np.linalg.norm(everything), rtol=1e-6)
    assert float(global_norm({})) == 0


def test_small_leaves_are_summed_together():
    """The compiled program has two reductions: one for the large leaf, and one for all other leaves."""
    text = jax.jit(global_norm).lower(TREE).as_text()
    assert text.count("stablehlo.reduce(") == 2


@pytest.mark.parametrize("largest", [0.5, 1e3])
def test_clip_is_that_of_optax(largest):
    ours, _ = clip(largest).update(TREE, clip(largest).init(TREE))
    reference = optax.clip_by_global_norm(largest)
    expected, _ = reference.update(TREE, reference.init(TREE))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
