"""The architectures: exact in float64 with all their layers, for vectors and images, with and without conditions."""

import math
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models import functional
from flowjax.models.bijections import FLOWS, Coupling, Sizes
from tests.models.bijections.exact import LABEL, check_exact

pytestmark = pytest.mark.analytic

SIZES = Sizes(layers=2, width=4, depth=1, bins=3, bound=2.0, scales=2)


def make(name, shape, fields=(), sizes=SIZES):
    return lambda rngs: FLOWS[name](shape, fields, sizes, rngs)


@pytest.mark.parametrize(
    ("name", "shape", "fields"),
    [
        ("nice", (3, 1), ()),
        ("real_nvp", (4, 4, 1), ()),
        ("spline", (2,), (LABEL,)),
        ("maf", (3,), (LABEL,)),
        ("glow", (3,), ()),
        ("glow", (4, 4, 1), (LABEL,)),
    ],
)
def test_exact(name, shape, fields):
    jacobians, _ = check_exact(make(name, shape, fields), shape, fields, scale=0.1)
    d = math.prod(shape)
    assert (abs(jacobians).max(0) > 0).sum() > d  # the coordinates are mixed


@pytest.mark.parametrize(("d", "permutations"), [(2, 0), (5, 1)])
def test_couplings_of_vectors(d, permutations):
    """Masks alternate, and random permutations mix the pairs of couplings, except in two dimensions."""
    layers = make("real_nvp", (d,), sizes=replace(SIZES, layers=4))(nnx.Rngs(0)).inner.layers
    masks = [layer.mask[...] for layer in layers if isinstance(layer, Coupling)]
    assert len(masks) == 4
    assert len(layers) - 4 == permutations
    for a, b in pairwise(masks):
        np.testing.assert_array_equal(a, ~b)


def test_the_state_is_what_training_leaves_unchanged():
    variables = functional(make("glow", (4, 4, 1))).init(jax.random.key(0))
    names = {str(path[-1].key) for path, _ in jax.tree_util.tree_leaves_with_path(variables.state)}
    assert names == {"mask", "order", "sign", "mean", "deviation", "initialised"}
    assert all(jnp.issubdtype(a.dtype, jnp.floating) for a in jax.tree.leaves(variables.params))


def test_only_convolutional_flows_are_slow_in_loops_on_a_cpu():
    assert functional(make("glow", (4, 4, 1))).traits.slow_in_cpu_loops
    assert not functional(make("glow", (3,))).traits.slow_in_cpu_loops


def test_too_many_scales_are_refused():
    with pytest.raises(
        ValueError, match=r"2 scales need images .* multiples of 4, .* 6 x 4 pixels: set method\.scales"
    ):
        make("glow", (6, 4, 1))(nnx.Rngs(0))
