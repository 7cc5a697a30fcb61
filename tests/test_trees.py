"""Names of the leaves of a pytree, and their values on the host."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import checksums, trees
from flowjax.trees import path_name


def test_a_path_is_named_by_its_keys_and_indices():
    tree = {"blocks": [{"kernel": 1.0}, {"kernel": 2.0}]}
    named = lambda *separator: [path_name(path, *separator) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert set(named()) == {"blocks/0/kernel", "blocks/1/kernel"}
    assert set(named(".")) == {"blocks.0.kernel", "blocks.1.kernel"}


def test_leaves_on_the_host_and_their_checksums():
    """Keys become their words; the checksum is that of the bytes of all arrays in order, bfloat16 and scalars too."""
    key = jax.random.key(7)
    np.testing.assert_array_equal(trees.on_host(key), jax.random.key_data(key))
    leaves = jnp.arange(6.0).reshape(2, 3).T, jnp.ones(3, jnp.bfloat16), jnp.array(True), key
    arrays = [trees.on_host(a) for a in leaves]
    assert all(a.flags.c_contiguous for a in arrays)
    joined = b"".join(a.tobytes() for a in arrays)
    assert checksums.of_arrays(arrays) == zlib.crc32(joined)
    assert checksums.of_arrays(arrays[1:], checksums.of_arrays(arrays[:1])) == zlib.crc32(joined)
