"""Cells of the grid from a config: what fits together runs, and what does not says why in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import couplings
from flowjax.build import build, data_arguments
from flowjax.config import changed, defaults, resolve
from flowjax.data import DataSpec, open_dataset
from flowjax.data.batches import prepared
from flowjax.errors import ConfigError
from flowjax.methods import METHODS, Context
from flowjax.names import COUPLINGS, NOISES, PATHS, PREDICTIONS, SCHEDULES, TIMES, WEIGHTS
from flowjax.paths import AffinePath, GaussianPath
from flowjax.training.trainer import Trainer

BOUND = {"method.name": "variational"}
HYBRID = {**BOUND, "method.variance": "learned", "method.hybrid": True}

CELLS = {
    "flow matching": {},
    "I-CFM with sigma": {"path.noise": "constant(0.1)"},
    "SB-CFM": {"path.noise": "bridge(1)", "coupling.name": "sinkhorn"},
    "SF2M": {"path.noise": "bridge(0.5)", "coupling.name": "sinkhorn", "prediction": "velocity_score"},
    "interpolant": {"path.schedule": "cosine", "path.noise": "sine2(0.5)", "prediction": "velocity_score"},
    "NCSN": {"path.schedule": "ve(0.01, 20)", "prediction": "score", "method.times": "levels(20)"},
    "EDM": {
        "path.schedule": "edm",
        "prediction": "edm(3.5)",
        "method.weight": "edm(3.5)",
        "method.times": "log_normal",
    },
    "DDPM": {"path.schedule": "ddpm_linear", "prediction": "noise", "method.times": "levels"},
    "improved DDPM": {"path.schedule": "nichol_cosine", "prediction": "noise_variance", **HYBRID},
    "bound": {"path.schedule": "vp", "prediction": "v", **BOUND, "method.levels": 50},
    "sub-VP by likelihood": {"path.schedule": "subvp", "method.weight": "likelihood", "method.times": "importance"},
    "score SDE by likelihood": {
        "path.schedule": "vp",
        "prediction": "noise",
        "method.weight": "likelihood",
        "method.times": "uniform_log_snr",
    },
    "SD3": {"path.shift": 3.0, "method.times": "logit_normal(0, 1)", "method.uncertainty": True},
    "improved reflow": {"method.times": "u_shaped(4)", "method.loss": "pseudo_huber(0.03)"},
    "data to data": {"source.name": "moons", "coupling.name": "auction(0.05)"},
    "digits to digits": {"data.name": "digits(1)", "source.name": "digits(0)", "coupling.name": "unbalanced(1, 10)"},
    "inpainting from pairs": {
        "data.name": "digits",
        "data.degrade": "box(4)",
        "data.pairs": "degraded",
        "path.noise": "fading(0.5)",
    },
    "class-aware": {"data.name": "digits", "coupling.name": "class_ot", "data.cond": ("label",)},
    "conditional": {"data.name": "digits", "coupling.name": "conditional_ot(2.0)", "data.cond": ("label",)},
}


def problem(overrides):
    config = defaults("mlp", overrides.get("method.name", "flow_matching"))
    config.model.width, config.model.depth = 8, 1
    for key, value in overrides.items():
        section, _, leaf = key.rpartition(".")
        (config[section] if section else config)[leaf] = value
    config = resolve(config)
    dataset = open_dataset(*data_arguments(config))
    return config, dataset, build(config, dataset.spec)


@pytest.mark.parametrize("cell", CELLS)
def test_every_kind_of_cell_has_a_loss_and_its_gradient(cell):
    config, dataset, built = problem(CELLS[cell])
    raw = dataset.sample(dataset.arrays() if dataset.arrays else None, jax.random.key(1), 16)
    cond = raw.cond if config.data.cond else None
    batch = prepared(dataset.spec, jax.random.key(2), raw._replace(cond=cond))
    params, state = built.init(jax.random.key(0))
    value = lambda p: built.loss(p, Context(state=state), jax.random.key(3), batch).value
    loss, grads = jax.jit(jax.value_and_grad(value))(params)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_a_class_aware_coupling_trains_in_the_compiled_loop():
    trainer = Trainer(*(problem({**CELLS["class-aware"], "train.batch_size": 16})[i] for i in (0, 2, 1)))
    state, metrics = trainer.run(trainer.init(), trainer.arrays(), 2)
    assert int(state.step) == 2
    assert int(metrics.bad_step) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"path.noise": "bridge(1)", "prediction": "noise"}, "use 'velocity', or 'velocity_score'"),
        ({"prediction": "velocity_score"}, "set path.noise"),
        ({"coupling.name": "ot", "prediction": "score"}, "makes the source depend on the data"),
        ({"source.name": "moons", "prediction": "noise"}, "is not N(0, I)"),
        ({"source.name": "moons", "path.schedule": "vp"}, "needs the source N(0, I)"),
        ({"path.name": "gaussian", "path.noise": "constant(0.1)"}, "path.noise is 'constant(0.1)'"),
        ({"coupling.name": "sinkhorn"}, "give its regularisation"),
        ({"coupling.name": "sinkhorn(-1)"}, "must be positive"),
        ({"coupling.name": "class_ot"}, "needs data.cond=label"),
        ({"coupling.name": "conditional_ot(2)"}, "compares the conditions of samples, so it needs data.cond"),
        ({"path.schedule": "vp(20, 0.1)"}, "beta_min <= beta_max"),
        ({"path.schedule": "vp(1, 2, 3)"}, "the signature is vp(beta_min: number = 0.1, beta_max: number = 20.0)"),
        ({"path.schedule": "vp(1"}, "was never closed"),
        ({"path.schedule": "vpp"}, "did you mean 'vp'"),
        ({"path.shift": 0.0}, "path.shift must be positive"),
        ({"method.weight": "min_snr(0)"}, "gamma must be positive"),
        ({"method.weight": "noise", "path.noise": "constant(0.1)"}, "a path without noise: use 'native'"),
        ({**HYBRID, "path.schedule": "vp"}, "prediction 'noise_variance' must be used together"),
        ({**BOUND, "path.schedule": "vp", "prediction": "noise_variance"}, "must be used together"),
        ({**BOUND, "method.variance": "huge"}, "method.variance: unknown 'huge'"),
        ({"prediction": "noise_variance"}, "use method.name 'variational'"),
        ({**BOUND, "source.name": "moons"}, "needs a Gaussian path"),
        ({**BOUND, "path.schedule": "condot"}, "needs noise at its last level"),
        ({"source.name": "digits(0)"}, "a source of digits needs data of digits"),
        ({"data.name": "digits(11)"}, "label must be an integer from 0 to 9"),
    ],
)
def test_what_does_not_fit_says_why(overrides, message):
    with pytest.raises(ConfigError) as error:
        problem(overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_coupling_may_compare_conditions_without_labels(tmp_path):
    rows = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=rows, obs=rows[:, :1])
    data = {"data.name": "npz", "data.path": str(tmp_path / "rows.npz"), "data.cond": ("obs",)}
    built = problem({**data, "coupling.name": "conditional_ot(2)"})[2]
    x0, x1, cond = jnp.asarray(rows[8:16]), jnp.asarray(rows[:8]), {"obs": jnp.asarray(rows[:8, :1])}
    paired, plain = (c(None, x0, x1, cond) for c in (built.coupling, couplings.MinibatchOT()))
    assert not np.array_equal(paired, plain)
    with pytest.raises(ConfigError, match=r"needs data.cond=label"):
        problem({**data, "coupling.name": "class_ot"})


def test_a_path_is_gaussian_wherever_it_can_be():
    assert isinstance(problem({})[2].path, GaussianPath)
    for overrides in ({"coupling.name": "ot"}, {"source.name": "moons"}, {"path.noise": "constant(0.1)"}):
        assert type(problem(overrides)[2].path) is AffinePath


def test_a_path_is_made_by_the_entry_of_the_table(monkeypatch):
    class Third(AffinePath):
        pass

    monkeypatch.setitem(PATHS, "third", lambda schedule, noise, gaussian, a=1: Third(schedule, noise))
    assert type(problem({"path.name": "third(a=2)"})[2].path) is Third
    assert problem({"path.name": "third", "path.noise": "constant(0.1)"})[2].path.noise.scale == 0.1
    monkeypatch.setitem(PATHS, "fourth", lambda schedule, noise, gaussian: GaussianPath(schedule))
    with pytest.raises(ConfigError, match=r"path.name 'fourth' has no meaning here: coupling.name 'ot' makes"):
        problem({"path.name": "fourth", "coupling.name": "ot"})


def test_given_pairs_make_the_source_depend_on_the_data():
    keys = {"data.pairs": "x0"}
    spec = DataSpec("npz", (2,))
    assert type(build(changed(defaults(), keys), spec).path) is AffinePath
    for more in ({"prediction": "score"}, {"prediction": "noise"}, {"path.name": "gaussian"}):
        with pytest.raises(ConfigError, match=r"data.pairs 'x0' makes the source depend on the data"):
            build(changed(defaults(), keys | more), spec)


def test_a_coupling_of_given_pairs_is_refused():
    config = defaults("mlp")
    config.data.name, config.data.pairs, config.coupling.name = "npz", "x0", "ot"
    with pytest.raises(ConfigError, match=r"coupling\.name 'ot' has no effect, because data\.pairs 'x0' gives"):
        build(resolve(config), DataSpec("npz", (2,)))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_the_pairs_and_the_mask_of_the_data_or_refuses_them(name):
    config = defaults("mlp", name)
    if name == "variational":
        config.path.schedule = "vp"
    for change, spec, takes, what in (
        ({"data.pairs": "x0"}, DataSpec("npz", (2,)), "takes_pairs", "would ignore that data.pairs is 'x0'"),
        ({}, DataSpec("npz", (3, 2), has_mask=True), "takes_mask", "would ignore that data 'npz' has a mask"),
    ):
        able = [other for other in METHODS if getattr(METHODS[other], takes)]
        assert {"flow_matching", "mean_flow"} <= set(able)
        if name in able:
            build(changed(config, change), spec)
            continue
        with pytest.raises(ConfigError, match=what) as error:
            build(changed(config, change), spec)
        assert str(error.value).endswith("the methods that use it are " + ", ".join(map(repr, able)))


def test_every_name_of_the_tables_is_tried_above():
    """A name added to a table must be added to a cell: what no test builds is not known to work."""
    text = str(CELLS)
    tried = {
        "schedules": (SCHEDULES, {"condot", "polynomial"}),
        "noises": (NOISES, set()),
        "couplings": (COUPLINGS, {"independent", "ot", "class_sinkhorn"}),
        "predictions": (PREDICTIONS, {"velocity", "data"}),
        "times": (TIMES, {"uniform", "stratified"}),
        "weights": (WEIGHTS, {"native", "velocity", "noise", "data", "score", "v", "snr", "min_snr", "sigmoid"}),
    }
    for table, elsewhere in tried.values():
        assert not [name for name in table if name not in text and name not in elsewhere]
