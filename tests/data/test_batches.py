"""The batch of a step: which rows, what is dropped, and what is known of it before it is made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import conditions
from flowjax.build import build, data_arguments, fields_of, make_augmentation
from flowjax.config import changed, defaults
from flowjax.data import open_dataset
from flowjax.data.batches import batch_like, make_get_batch, prepared
from flowjax.data.stream import Stream
from flowjax.training.trainer import Trainer

RNG = np.random.default_rng(0)


@pytest.fixture
def path(tmp_path):
    x = RNG.integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    obs = RNG.normal(size=(40, 3))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 4, obs=obs, x0=255 - x)
    return str(tmp_path / "a.npz")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_batch_is_a_pure_function_of_its_key(path, monkeypatch, streamed):
    """The rows of a stream are given; of a resident set the key draws them. Pairs stay pairs: x0 = 255 - x, to the
    dequantisation of both, which is uniform on [0, 1) pixel."""
    if streamed:
        monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    config = changed(defaults("adm"), {"data.cond": ("label(dropout=0)", "obs(dropout=0.5)"), "data.path": path})
    dataset = open_dataset("npz", path, config.data.cond, "x0")
    fields = fields_of(config, dataset.spec)
    get = make_get_batch(dataset, fields, make_augmentation(config, dataset.spec), 16)
    arrays = (
        jax.tree.map(lambda a: jnp.asarray(a)[None], Stream(dataset.rows, 0, 16)[0]) if streamed else dataset.arrays()
    )
    batch, again = (jax.jit(get)(arrays, jax.random.key(5), 0) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, batch, again)
    like = batch_like(dataset, fields, 16)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), batch) == jax.tree.map(lambda a: (a.shape, a.dtype), like)
    levels = lambda x: np.asarray(dataset.spec.finish(x), int)
    np.testing.assert_array_equal(levels(batch.x0), 255 - levels(batch.x1))
    assert np.abs(batch.x0 + batch.x1 - 1 / 127.5).max() < 1 / 127.5 + 1e-6
    given = ~np.isnan(batch.cond["obs"])
    assert set(given.sum(1)) == {0, 3}
    assert set(np.asarray(batch.cond["label"])) <= set(range(4))


def test_dropping_a_field_does_not_change_other_draws(path):
    config = changed(defaults("adm"), {"data.cond": ("label",), "data.path": path})
    make = lambda cond: make_get_batch(
        (dataset := open_dataset("npz", path, cond)),
        fields_of(changed(config, {"data.cond": cond}), dataset.spec),
        make_augmentation(config, dataset.spec),
        16,
    )(dataset.arrays(), jax.random.key(1), 0)
    one, two = make(("label",)), make(("label", "obs(dropout=0.9)"))
    np.testing.assert_array_equal(one.x1, two.x1)
    np.testing.assert_array_equal(one.cond["label"], two.cond["label"])


def test_augmentation_is_a_condition_that_the_data_do_not_deliver(path):
    config = changed(defaults("adm"), {"data.augment": "edm", "data.path": path})
    dataset = open_dataset("npz", path)
    fields = fields_of(config, dataset.spec)
    batch = make_get_batch(dataset, fields, make_augmentation(config, dataset.spec), 4)(
        dataset.arrays(), jax.random.key(0), 0
    )
    assert set(batch.cond) == {"augment"}
    assert conditions.check(batch.cond, fields)


def test_test_rows_are_prepared_as_training_rows_are(path):
    dataset = open_dataset("npz", path, ("obs",), "x0")
    batch = prepared(dataset.spec, jax.random.key(0), jax.tree.map(jnp.asarray, dataset.encoded_test(3, ("obs",))))
    assert batch.x1.shape == batch.x0.shape == (3, 4, 4, 1)
    assert batch.x0.dtype == batch.x1.dtype == jnp.float32
    assert set(batch.cond) == {"obs"}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_with_conditions_of_all_kinds_and_pairs_trains(tmp_path, monkeypatch, streamed):
    """A table of columns of very different scales, a vector, a set, a label, and sources of its own."""
    if streamed:
        monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    x = RNG.normal(size=(40, 2)) * [1e-4, 1e3]
    points = RNG.normal(size=(40, 3, 2))
    points[::2, 1:] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 4, obs=RNG.normal(size=(40, 3)), points=points, x0=-x)
    cond = ("label", "obs", "points(kind='set', dropout=0)")
    keys = {"data.name": "npz", "data.path": str(tmp_path / "a.npz"), "data.cond": cond, "data.pairs": "x0"}
    sizes = {"model.width": 8, "model.depth": 1, "train.batch_size": 8, "train.warmup": 0.0}
    config = changed(defaults(), keys | sizes)
    dataset = open_dataset(*data_arguments(config))
    trainer = Trainer(config, build(config, dataset.spec), dataset)
    rows = trainer.prefetcher(0, 2) if streamed else trainer.arrays()
    state, metrics = trainer.run(trainer.init(), rows, 2)
    if streamed:
        trainer.prefetcher.close()
    assert (int(state.step), int(metrics.bad_step)) == (2, 0)
    encoded = dataset.spec.encode_cond({"obs": dataset.test_cond["obs"]})["obs"]
    np.testing.assert_array_equal(trainer.held_out().cond["obs"], encoded)
    assert np.isfinite(trainer.val_loss(state))
