"""What every network does with its inputs beside x: each kind of condition, a second time, and a mask."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.conditions import KINDS, NO_LABEL, Field, drop, null
from flowjax.models import ADM, EDM2, MLP, DiT, ResMLP, Transformer, UNet, UNet1D
from flowjax.models.encoders import ENCODERS, TAKES, encoders_of
from flowjax.models.magnitude import MPLinear, normalise
from flowjax.models.magnitude_encoders import MP_ENCODERS

IMAGE = (4, 4, 1)
LEVEL = {"multipliers": (1,), "blocks": 0, "attention": (), "dtype": "float32"}
NETWORKS = {
    "mlp": (MLP, (4, 2), {"width": 16, "depth": 1}),
    "resmlp": (ResMLP, (4, 2), {"width": 16, "depth": 1}),
    "transformer": (Transformer, (4, 2), {"width": 16, "depth": 1, "heads": 2}),
    "unet1d": (UNet1D, (3, 2), {"channels": 8, "multipliers": (1, 2), "blocks": 1, "heads": 2}),
    "unet": (UNet, IMAGE, {"channels": 8, "multipliers": (1,), "blocks": 0, "heads": 2}),
    "adm": (ADM, IMAGE, {**LEVEL, "channels": 64, "head_width": 64}),
    "edm2": (EDM2, IMAGE, {**LEVEL, "channels": 8, "head_width": 8}),
    "dit": (DiT, IMAGE, {"depth": 1, "width": 16, "heads": 2, "dtype": "float32"}),
}
"""Few layers: most of the time of these tests is compilation."""

FIELDS = (
    Field("label", "label", num_classes=3, dropout=1.0),
    Field("vector", "vector", (3,), dropout=1.0),
    Field("angle", "vector", (2,), dropout=1.0, zero_is_null=True),
    Field("set", "set", (4, 2), dropout=1.0),
    Field("image", "image", (4, 4, 2), dropout=1.0),
    Field("sequence", "sequence", (3, 2), dropout=1.0),
)
"""One of each kind, and a vector whose null value is 0. Dropout always replaces them by the null value."""

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""Rows of one batch with equal conditions: float32's rounding in some ten layers, of outputs of order 1."""


def fields_of(name):
    return tuple(f for f in FIELDS if f.kind in TAKES[name])


def build(name, rngs, **keys):
    kind, shape, sizes = NETWORKS[name]
    return kind(shape, **sizes | keys, rngs=rngs)


def filled(construct):
    """The module's graph and state, with NumPy's numbers for parameters, of which no layer is zero."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: construct(nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def make(path, a):
        z = rng.normal(size=a.shape)
        if a.ndim < 2:
            z = 0.3 * z + (1.0 if "scale" in jax.tree_util.keystr(path) or not a.ndim else 0.0)
        return jnp.asarray(z / math.sqrt(math.prod(a.shape[:-1])), jnp.float32)

    return graph, jax.tree_util.tree_map_with_path(make, shapes)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Conditions


def rows_of(fields):
    """Conditions of a batch, by the name of the row. What a row does not mention has the null value."""
    v, nan = {f.name: normal(i, *f.shape) for i, f in enumerate(FIELDS)} | {"label": 1}, np.nan
    part = lambda name, where, value: {name: changed(v[name], where, value)}
    rows = {
        "none": {},
        "label given": {"label": 1},
        "vector given": {"vector": v["vector"]},
        "vector, one number unknown": part("vector", 1, nan),
        "angle given": {"angle": v["angle"]},
        "set given": {"set": v["set"]},
        "set permuted": {"set": v["set"][[2, 0, 3, 1]]},
        "set of two": part("set", [1, 3], nan),
        "set of two, permuted": {"set": changed(v["set"], [1, 3], nan)[[1, 2, 3, 0]]},
        "set of two, other masked contents": part("set", ([1, 3], [0, 1]), nan),
        "set of two others": part("set", [0, 2], nan),
        "image given": {"image": v["image"]},
        "image in part": part("image", (slice(2), 1), nan),
        "image in part, other masked contents": part("image", (slice(2), 1, 0), nan),
        "sequence given": {"sequence": v["sequence"]},
        "sequence reversed": {"sequence": v["sequence"][::-1]},
        "sequence in part": part("sequence", 1, nan),
        "sequence in part, other masked contents": part("sequence", (1, 0), nan),
        "all": v,
        "every second": {f.name: v[f.name] for f in fields[1::2]},
        "every other": {f.name: v[f.name] for f in fields[::2]},
    }
    names = {f.name for f in fields}
    kept = {key: {k: a for k, a in row.items() if k in names} for key, row in rows.items()}
    kept = {key: row for key, row in kept.items() if row or key == "none"}
    nulls = {f.name: np.asarray(null(f, 1))[0] for f in fields}
    stack = lambda f: jnp.asarray(np.stack([row.get(f.name, nulls[f.name]) for row in kept.values()]), f.dtype)
    return {key: i for i, key in enumerate(kept)}, {f.name: stack(f) for f in fields}


def changed(a, where, value):
    out = a.copy()
    out[where] = value
    return out


@pytest.fixture(scope="module")
def answers():
    """For a network: its rows by name, their outputs, the gradient, and the outputs where fields are absent."""
    known = {}

    def of(name):
        if name in known:
            return known[name]
        fields = fields_of(name)
        graph, params = filled(lambda rngs: build(name, rngs, fields=fields))
        rows, cond = rows_of(fields)
        shape = NETWORKS[name][1]
        x = jnp.broadcast_to(normal(99, *shape), (len(rows), *shape))
        apply = lambda params, cond, x: nnx.merge(graph, params)(0.3, x, cond)
        size = lambda params, *args: (jnp.mean(jnp.square(y := apply(params, *args))), y)
        (_, out), gradient = jax.jit(jax.value_and_grad(size, has_aux=True))(params, cond, x)
        absent = {}
        for key, kept in (("every second", fields[1::2]), ("every other", fields[::2])):
            given = {f.name: cond[f.name][rows[key]][None] for f in kept}
            absent[key] = jax.jit(apply)(params, given, x[:1])[0]
        known[name] = SimpleNamespace(rows=rows, out=np.asarray(out), gradient=gradient, absent=absent, cond=cond)
        return known[name]

    return of


EVERY = pytest.mark.parametrize("name", NETWORKS)
QUICK = ("mlp", "resmlp", "transformer")
ANSWERED = pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n not in QUICK)]
)


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_a_dropped_field_has_its_null_value(field):
    given = {field.name: jnp.ones((3, *field.shape), field.dtype)}
    np.testing.assert_array_equal(drop(jax.random.key(0), given, [field])[field.name], null(field, 3))


@ANSWERED
def test_a_field_that_is_given_counts(answers, name):
    found = answers(name)
    rows, out = found.rows, found.out
    assert np.abs(out).max() < 30
    counted = [key for key in rows if key.endswith(" given") or key in ("all", "set of two", "image in part")]
    assert len(counted) >= len(fields_of(name)) + 2
    for key in counted:
        assert np.abs(out[rows[key]] - out[rows["none"]]).max() > 1e-2, key


@ANSWERED
def test_a_field_that_is_absent_has_its_null_value(answers, name):
    """Each field is absent once, while others are given; it makes a difference, so that equality says something."""
    found = answers(name)
    for key, without in found.absent.items():
        np.testing.assert_allclose(without, found.out[found.rows[key]], **CLOSE)
        assert np.abs(without - found.out[found.rows["all"]]).max() > 1e-2
    unknown, none = (found.out[found.rows[key]] for key in ("vector, one number unknown", "none"))
    np.testing.assert_allclose(unknown, none, **CLOSE)  # a vector is given in full or not at all


@ANSWERED
def test_a_set_has_no_order_and_masked_elements_no_contents(answers, name):
    rows, out = answers(name).rows, answers(name).out
    pairs = [("set given", "set permuted"), ("set of two", "set of two, permuted")]
    pairs += [(key, f"{key}, other masked contents") for key in ("set of two", "image in part", "sequence in part")]
    pairs = [pair for pair in pairs if pair[0] in rows]
    assert len(pairs) == 3 + ("image" in TAKES[name]) + ("sequence" in TAKES[name])
    for a, b in pairs:
        np.testing.assert_allclose(out[rows[a]], out[rows[b]], **CLOSE, err_msg=f"{a} | {b}")
    others = [("set of two", "set of two others"), ("set given", "set of two")]
    others += [("sequence given", "sequence reversed")] if "sequence" in TAKES[name] else []
    for a, b in others:
        assert np.abs(out[rows[a]] - out[rows[b]]).max() > 1e-3, (a, b)


@pytest.mark.parametrize("table", [ENCODERS, MP_ENCODERS], ids=["plain", "magnitude preserving"])
def test_an_encoded_set_is_that_of_its_present_elements(table):
    """However many are masked: to rounding of means of at most four numbers of order 1."""
    field = Field("set", "set", (4, 2))
    graph, params = filled(lambda rngs: encoders_of([field], 16, table=table, rngs=rngs)["set"])
    encode = jax.jit(lambda value: nnx.merge(graph, params)(value, 2))
    value = jnp.asarray(normal(0, 2, 4, 2))
    for kept in ([1], [0, 3], [1, 2, 3]):
        masked = jnp.full_like(value, np.nan).at[:, np.array(kept)].set(value[:, np.array(kept)])
        np.testing.assert_allclose(encode(masked), encode(value[:, np.array(kept)]), rtol=1e-5, atol=1e-5)


@ANSWERED
def test_gradients_are_finite_though_null_values_are_nan(answers, name):
    """Of every parameter, and none of the encoders' is idle: the batch has rows of every sort."""
    found = answers(name)
    assert any(np.isnan(a).any() for a in found.cond.values() if a.dtype == jnp.float32)
    for path, a in jax.tree_util.tree_leaves_with_path(found.gradient):
        assert np.isfinite(a).all(), path
        assert "encoders" not in jax.tree_util.keystr(path) or np.abs(a).max() > 0, path


@EVERY
def test_kinds_that_a_network_does_not_take_are_refused(name):
    shapes = {f.kind: f for f in FIELDS}
    assert set(shapes) == set(KINDS)
    refused = [kind for kind in KINDS if kind not in TAKES[name]]
    assert refused or name in ("dit", "transformer")
    for kind in refused:
        field = Field("observed", kind, shapes[kind].shape)
        with pytest.raises(
            ValueError, match=rf"^{name} takes no condition of the kind {kind} \('observed'\).*"
        ) as error:
            build(name, nnx.Rngs(0), fields=(field,))
        assert "\n" not in str(error.value)
        assert "dit" in str(error.value) or kind not in TAKES["dit"]  # names those that take it
    if "image" in TAKES[name] and name != "transformer":  # which takes images of any size as tokens
        with pytest.raises(
            ValueError, match=r"^condition 'observed' must have the height and width of the data, \(4, 4\)"
        ):
            build(name, nnx.Rngs(0), fields=(Field("observed", "image", (8, 4, 2)),))


# Magnitudes


@pytest.mark.parametrize("name", ["label", "vector", "set"])
def test_the_encoders_of_edm2_start_at_unit_magnitude(name):
    """Whether a row is given or not: over n channels with weights of their own, the mean square is off by 5 deviations.

    A weight is uniform on a sphere, so the product with a row of mean square 1 has mean square 1 and a fourth moment
    of at most 3, that of a normal number: the mean of n squares has variance 2 / n. Sets are normalised: to rounding,
    and EPS. The gain of a vector whose null value is 0 starts at zero: it adds nothing.
    """
    n = 1024
    fields = (*(f for f in FIELDS if f.name == name), Field("angle", "vector", (2,), zero_is_null=True))
    nan = np.nan
    rows = {
        "label": jnp.array([0, 1, 2, NO_LABEL]),
        "vector": normalise(jnp.asarray(normal(0, 3, 3))).at[2].set(nan),
        "set": jnp.asarray(normal(0, 4, 4, 2)).at[1, 2:].set(nan).at[2, 1:].set(nan).at[3].set(nan),
    }[name]

    @jax.jit
    def encoded(rows):
        encoders = encoders_of(fields, n, table=MP_ENCODERS, rngs=nnx.Rngs(0))
        one = encoders[name]
        return jnp.concatenate([one(rows, len(rows)), one(None, 1)]), encoders["angle"](jnp.ones((2, 2)), 2)

    out, nothing = encoded(rows)
    for row in out:
        tolerance = 1e-4 if name == "set" else 5 * math.sqrt(2 / n)
        assert abs(float(jnp.mean(row**2)) - 1) < tolerance
    np.testing.assert_allclose(out[-1], out[-2], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(nothing, np.zeros((2, n)))


def test_the_embedding_of_edm2_keeps_magnitude_with_any_number_of_conditions(monkeypatch):
    """Before its SiLU: a sum of k + 1 uncorrelated parts of equal weight. That of the noise level has n cosines, whose
    mean square has variance 0.5 / n, and n channels of their own weights, 2 / n."""
    monkeypatch.setattr("flowjax.models.edm2.mp_silu", lambda x: x)
    n = 1024
    fields = tuple(f for f in FIELDS if f.kind in ("label", "vector", "set") and not f.zero_is_null)
    cond = {"label": jnp.array([1]), "vector": normalise(jnp.asarray(normal(0, 1, 3)))}
    cond["set"] = jnp.asarray(normal(1, 1, 4, 2))

    @jax.jit
    def embedded(cond):
        rngs = nnx.Rngs(0)
        encoders, parts = encoders_of(fields, n, table=MP_ENCODERS, rngs=rngs), {"time": "linear", "time_scale": 1.0}
        network = SimpleNamespace(**parts, noise=MPLinear(n, n, rngs=rngs), features=n, encoders=encoders)
        sums = []
        for k in range(len(fields) + 1):
            network.fields = fields[:k]
            sums.append([EDM2._embed(network, jnp.array([0.3]), given)[0] for given in (cond, {})])
        return sums, [encoders[f.name](cond[f.name], 1)[0] for f in fields]

    sums, encoded = embedded(cond)
    for k, (given, missing) in enumerate(sums):
        for e in (given, missing):
            assert abs(float(jnp.mean(e**2)) - 1) < 5 * math.sqrt(2.5 / n)
        for part in encoded[:k]:
            assert abs(float(jnp.mean(given * part)) - 1 / math.sqrt(k + 1)) < 5 * math.sqrt(2 / n)


# Two times


@pytest.fixture(scope="module")
def two_times():
    known = {}

    def of(name):
        if name not in known:
            graph, params = filled(lambda rngs: build(name, rngs, two_times=True))
            known[name] = jax.jit(lambda t, x, s: nnx.merge(graph, params)(t, x, s=s)), nnx.merge(graph, params)
        return known[name]

    return of


TWO = pytest.mark.parametrize("name", ["mlp", "resmlp", "transformer", "unet", "unet1d", "adm", "dit"])


@TWO
def test_a_second_time_counts_row_by_row(two_times, name):
    """A batch with a time per row gives what a batch of equal rows gives for each: rounding of outputs of order 1."""
    apply, _ = two_times(name)
    x = jnp.asarray(normal(0, 3, *NETWORKS[name][1]))
    t, s = jnp.array([0.9, 0.5, 0.7]), jnp.array([0.1, 0.5, 0.6])
    out = np.asarray(apply(t, x, s))
    for i in range(3):
        same = lambda a, i=i: jnp.broadcast_to(a[i], a.shape)
        np.testing.assert_allclose(apply(same(t), same(x), same(s))[0], out[i], **CLOSE)
    assert np.abs(apply(t, x, s + 0.2) - out).max((*range(1, x.ndim),)).min() > 1e-3
    assert np.abs(apply(t, x, s - 0.2) - apply(t, x, s + 0.2)).max((*range(1, x.ndim),)).min() > 1e-3
    if name == "mlp":  # a scalar is the same for all rows
        np.testing.assert_allclose(apply(t, x, 0.5), apply(t, x, jnp.full(3, 0.5)), **CLOSE)


@EVERY
def test_a_second_time_where_it_has_no_meaning_is_refused(two_times, name):
    x = jnp.zeros((2, *NETWORKS[name][1]))
    one = nnx.merge(*filled(lambda rngs: build(name, rngs)))
    with pytest.raises(
        ValueError, match=r"^this network takes one time: build it with two_times=True to call it with s$"
    ):
        one(0.3, x, s=0.1)
    if name == "edm2":
        with pytest.raises(ValueError, match=rf"^{name} takes only one time: use one of the other networks"):
            build(name, nnx.Rngs(0), two_times=True)
    else:
        with pytest.raises(ValueError, match=r"^this network takes two times: call it with s$"):
            two_times(name)[1](0.3, x)


# Masks


MASKED = ("mlp", "resmlp", "transformer")


@pytest.mark.parametrize("name", MASKED)
def test_masked_elements_influence_nothing(name):
    """Exactly: they are replaced by zeros before the first layer."""
    graph, params = filled(lambda rngs: build(name, rngs, outputs=2))
    apply = jax.jit(lambda x, mask: nnx.merge(graph, params)(0.3, x, mask=mask))
    x, mask = jnp.asarray(normal(0, 3, 4, 2)), jnp.array([[True] * 4, [True, True, False, False], [False] * 4])
    out = apply(x, mask)
    assert out.shape == (3, 4, 4)
    for value in (0.0, 1e6, np.nan):
        np.testing.assert_array_equal(apply(jnp.where(mask[..., None], x, value), mask), out)
    np.testing.assert_array_equal(out[~np.asarray(mask)], 0)
    assert float(jnp.abs(apply(x.at[1, 1].add(1.0), mask) - out)[1, 0].max()) > 1e-3  # present ones see each other
    np.testing.assert_array_equal(apply(x.at[1, 1].add(1.0), mask)[0], out[0])
    everything = jnp.ones((3, 4), bool)
    plain = jax.jit(lambda x: nnx.merge(graph, params)(0.3, x))(x)
    np.testing.assert_allclose(apply(x, everything), plain, **CLOSE)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(nnx.merge(graph, params)(0.3, x, mask=mask) ** 2)))(x * jnp.nan)
    np.testing.assert_array_equal(gradient[~np.asarray(mask)], 0)


@EVERY
def test_masks_that_a_network_does_not_take_are_refused(name, as_users_call):
    model, shape = nnx.merge(*filled(lambda rngs: build(name, rngs))), NETWORKS[name][1]
    x = jnp.zeros((2, *shape))
    message = r"^a mask \(B, N\) .* x of shape \(B, N, C\)" if name in MASKED else "^this network takes no mask"
    with pytest.raises(ValueError, match=message):
        model(0.3, x, mask=jnp.ones((2, 7), bool))
