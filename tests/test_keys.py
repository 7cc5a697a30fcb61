"""Keys of rows: a function of the key and of the row's number alone."""

import jax
import numpy as np

from flowjax.keys import fold_rows, row_keys


def test_the_key_of_a_row_is_the_key_folded_with_its_number():
    key = jax.random.key(3)
    keys = row_keys(key, 5)
    data = jax.random.key_data
    np.testing.assert_array_equal(data(keys), [data(jax.random.fold_in(key, i)) for i in range(5)])
    np.testing.assert_array_equal(data(row_keys(key, 9)[:5]), data(keys))
    assert row_keys(keys, 5) is keys
    assert row_keys(None, 5) is None
    np.testing.assert_array_equal(data(fold_rows(keys, 7)), [data(jax.random.fold_in(one, 7)) for one in keys])
