"""Names of the leaves of a pytree."""

import jax

from flowjax.trees import path_name


def test_a_path_is_named_by_its_keys_and_indices():
    tree = {"blocks": [{"kernel": 1.0}, {"kernel": 2.0}]}
    named = lambda *separator: [path_name(path, *separator) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert set(named()) == {"blocks/0/kernel", "blocks/1/kernel"}
    assert set(named(".")) == {"blocks.0.kernel", "blocks.1.kernel"}
