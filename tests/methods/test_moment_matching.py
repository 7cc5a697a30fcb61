"""Inductive moment matching: the discrepancy against a double loop, and exact maps between known distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.batch import Batch
from flowjax.errors import ConfigError
from flowjax.methods import Context, MomentMatching, Network
from flowjax.methods.moment_matching import discrepancy, equal_conditions, laplace
from flowjax.paths import GaussianPath
from flowjax.schedules import VP, CondOT
from flowjax.sources import Normal
from tests.methods.known_flow import KnownFlow, column

KEY, M = jax.random.key(0), jnp.array([2.0, -1.0])


def to_one_point(params, t, x, cond, s):
    """The average velocity of the flow to the single point M, plus params times the length of the interval."""
    return (M - x) / (1 - column(s, x)) + params * (column(t, x) - column(s, x))


def matching(network=to_one_point, path=None, **settings):
    return MomentMatching(Network.from_function(network), path or GaussianPath(CondOT()), Normal((2,)), **settings)


def test_the_discrepancy_against_a_double_loop():
    """In float64, with a pair of equal samples, whose distance counts as 1e-8."""
    with jax.enable_x64(True):
        y, z = np.array(jax.random.normal(KEY, (2, 3, 4, 5), jnp.float64))
        z[0, 1] = y[0, 2]
        width = np.array([0.5, 1.0, 3.0])
        label = np.array([0, 1, 0, 0] + [2] * 4 + [0, 1, 2, 3])  # some, all and no pairs of each group are equal
        equal = equal_conditions({"label": jnp.asarray(label)}, 3, 4)
        found = discrepancy(jnp.asarray(y), jnp.asarray(z), jnp.asarray(width), equal)
        for g in range(3):
            k = lambda a, b, g=g: np.exp(-max(np.linalg.norm(a - b), 1e-8) / width[g])
            pairs = [(j, i) for j in range(4) for i in range(4) if label[4 * g + j] == label[4 * g + i]]
            total = sum(k(y[g, j], y[g, i]) + k(z[g, j], z[g, i]) - 2 * k(y[g, j], z[g, i]) for j, i in pairs)
            assert float(found[g]) == pytest.approx(total / 16, rel=1e-12)
        total = lambda y: discrepancy(y, jnp.asarray(z), jnp.asarray(width), equal).sum()
        gradient = jax.grad(total)(jnp.asarray(y))
        assert np.isfinite(gradient).all()


def test_maps_of_exchanged_conditions_differ():
    """y and z are the same set of points, with the conditions exchanged: equal as distributions of points, and at the
    distance 2 (1 - k) of the two points as distributions given the condition, of which half of the pairs count."""
    y, width = jnp.array([[[0.0], [1.0], [0.0], [1.0]]]), jnp.ones(1)
    label = {"label": jnp.array([0, 1, 0, 1])}
    assert float(discrepancy(y, 1 - y, width, equal_conditions(None, 1, 4))[0]) == pytest.approx(0.0, abs=1e-6)
    found = discrepancy(y, 1 - y, width, equal_conditions(label, 1, 4))
    assert float(found[0]) == pytest.approx(1 - np.exp(-1), rel=1e-5)


def test_conditions_are_equal_if_all_of_them_are():
    nan = np.nan
    vector = jnp.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0], [nan, nan], [nan, nan], [nan, 2.0]])
    label = jnp.array([0, 0, 0, -1, -1, -1])
    found = equal_conditions({"label": label, "vector": vector}, 2, 3)
    np.testing.assert_array_equal(found, [[[1, 1, 0], [1, 1, 0], [0, 0, 1]], [[1, 1, 0], [1, 1, 0], [0, 0, 1]]])
    np.testing.assert_array_equal(equal_conditions({"label": jnp.arange(6)}, 2, 3), [np.eye(3)] * 2)


def test_the_loss_compares_particles_of_equal_conditions():
    value = lambda cond: float(matching(decrement=0.5).loss(1.0, Context(), KEY, Batch(x1, cond)).value)
    x1 = jnp.broadcast_to(M, (64, 2))
    plain = value(None)
    assert value({"label": jnp.repeat(jnp.arange(16), 4)}) == pytest.approx(plain, rel=1e-6)
    assert abs(value({"label": jnp.arange(64)}) - plain) > 0.01 * plain


def between_maps(offset):
    """The terms j != k of the discrepancy between maps to t = 0.9 from s = 0.3 and r = 0.5 of points of one path, as
    means over groups and their standard error. The map from s has an offset."""
    flow, m, groups = KnownFlow(GaussianPath(CondOT())), 8, 2000
    x1 = flow.batch(m * groups, 2).x1
    x0 = jax.random.normal(jax.random.key(3), x1.shape)
    s, r, t = 0.3, 0.5, 0.9
    at = lambda time: flow.path.sample(None, time, x0, x1).x_t
    grouped = lambda x: x.reshape(groups, m, 2)
    y, z = grouped(flow.flow_map(s, t, at(s)) + offset), grouped(flow.flow_map(r, t, at(r)))
    width = jnp.full(groups, 2 * (t - s))
    own = jnp.diagonal(laplace(y, z, width), axis1=1, axis2=2)
    equal = equal_conditions(None, groups, m)
    values = np.asarray(discrepancy(y, z, width, equal) - 2 / m * (1 - own.mean(1)), np.float64)
    return values.mean(), values.std() / np.sqrt(groups)


def test_exact_maps_have_no_discrepancy():
    """Equal distributions have the same expected kernel for j != k, whether or not the particles are paired. Five
    standard errors for one mean of independent groups."""
    mean, error = between_maps(0.0)
    assert abs(mean) < 5 * error
    mean, error = between_maps(0.2)
    assert mean > 20 * error


def recorded(network=to_one_point):
    """The network, and the list of the arguments (s, t, x) of its evaluations, to which it appends them."""
    calls = []

    def apply(params, t, x, cond, s):
        calls.append((s, t, x))
        return network(params, t, x, cond, s)

    return apply, calls


@pytest.mark.parametrize("group", [1, 4])
def test_the_loss_of_the_flow_to_one_point_is_zero(group):
    """With all data at M, x_s and x_r lie on one trajectory, so that the exact map has y = z. In float64 both have
    errors below 10 * 2^-52 in numbers below 8. The kernel has the slope 1 / width, and (2) is a mean of 4 kernels."""
    with jax.enable_x64(True):
        network, calls = recorded()
        batch = Batch(jnp.broadcast_to(M.astype(jnp.float64), (512, 2)))
        found = matching(network, group=group).loss(0.0, Context(), KEY, batch).metrics["discrepancy"]
        s, t, _ = calls[0]
        assert abs(float(found)) < float(jnp.mean(4 * 80 * 2**-52 / (2 * (t - s))))


def test_the_loss_of_a_wrong_map_to_one_point():
    """For M = 1, equation (2) is k(y, y) + k(z, z) - 2 k(y, z). The map adds (t - s)^2 to both coordinates of y, and
    (t - r)^2 to those of z."""
    with jax.enable_x64(True):
        network, calls = recorded()
        batch = Batch(jnp.broadcast_to(M.astype(jnp.float64), (512, 2)))
        found = matching(network, group=1, decrement=0.5).loss(1.0, Context(), KEY, batch).metrics["discrepancy"]
        (s, t, _), (r, _, _) = calls
        kernel = lambda distance: np.exp(-np.maximum(distance, 1e-8) / (2 * (t - s)))
        distance = 2**0.5 * ((t - s) ** 2 - (t - r) ** 2)
        expected = np.mean(2 * kernel(0.0) - 2 * kernel(distance))
        assert expected > 0.02
        assert float(found) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("group", [1, 4])
def test_no_gradient_flows_through_the_target(group):
    """The derivative is that of w(s) MMD^2 with numbers z that are computed beforehand, at the points at which the
    method evaluates the network. With a gradient through z it is another one."""
    with jax.enable_x64(True):
        network, calls = recorded()
        batch = Batch(jnp.broadcast_to(M.astype(jnp.float64), (64, 2)))
        method = matching(network, group=group, decrement=0.3)
        derivative = jax.grad(lambda p: method.loss(p, Context(), KEY, batch).value)(0.5)
        (s, t, x_s), (r, _, x_r) = calls
        np.testing.assert_allclose((x_r - r[:, None] * M) / (1 - r[:, None]), (x_s - s[:, None] * M) / (1 - s[:, None]))
        np.testing.assert_allclose(r, method.between(s, t), rtol=1e-12)
        image = lambda p, s, x: (x + (t - s)[:, None] * to_one_point(p, t, x, None, s)).reshape(-1, group, 2)
        first, width, equal = s[::group], 2 * (t - s)[::group], equal_conditions(None, 64 // group, group)
        value = lambda p, z: jnp.mean(method.weight(first) * discrepancy(image(p, s, x_s), z, width, equal))
        z = image(0.5, r, x_r)
        assert float(derivative) == pytest.approx(float(jax.grad(value)(0.5, z)), rel=1e-9)
        through_both = jax.grad(lambda p: value(p, image(p, r, x_r)))(0.5)
        assert abs(float(derivative) - float(through_both)) > 0.05 * abs(float(through_both))


def test_times_and_weights_of_straight_paths():
    """sigma / alpha = (1 - s) / s falls by 0.1 to the ratio at r; log SNR = 2 log(s / (1 - s)), with slope
    2 / (s (1 - s))."""
    s, t = jnp.array([0.2, 0.5, 0.5, 0.95]), jnp.array([0.9, 0.9, 0.51, 1.0])
    method = matching(decrement=0.1)
    ratio = (1 - s) / s - 0.1
    expected = jnp.where(ratio > 0, jnp.minimum(1 / (1 + ratio), t), t)
    np.testing.assert_allclose(method.between(s, t), expected, rtol=1e-5)
    sigmoid = 1 / (1 + jnp.exp(2 * jnp.log(s / (1 - s)) - 5))
    np.testing.assert_allclose(method.weight(s), sigmoid / (s * (1 - s)) * s / (s**2 + (1 - s) ** 2), rtol=1e-5)


def test_a_curved_path_has_times_in_order():
    method = matching(path=GaussianPath(VP()))
    low, high = method.training_interval
    s = jnp.linspace(low, high, 50)
    r = method.between(s, jnp.full_like(s, method.path.t_max))
    assert bool((r >= s).all())
    assert bool((r <= method.path.t_max).all())


def test_a_group_must_divide_the_batch():
    batch = Batch(jnp.broadcast_to(M, (10, 2)))
    with pytest.raises(ConfigError, match=r"^method.group 4 must divide the 10 rows of a batch \(train.batch_size"):
        matching().loss(0.0, Context(training=True), KEY, batch)
    assert np.isfinite(matching().loss(0.0, Context(), KEY, batch).value)  # validation leaves two rows out


def test_from_the_command_line(flowjax, tmp_path):
    tiny = ["--config.train.steps=4", "--config.train.batch_size=32", "--config.train.log_every=2"]
    tiny += ["--config.model.width=8", "--config.model.depth=1"]
    start = ("train", "--config=moment_matching_gaussians8", f"--workdir={tmp_path}/run", *tiny)
    code, _, err = flowjax(*start, "--config.method.group=5")
    assert code == 2, err
    assert "method.group 5 must divide the 32 rows of a batch" in err.splitlines()[-1]
    code, _, err = flowjax(*start)
    assert code == 0, err
    out = f"--out={tmp_path}/x.npz"
    code, result, err = flowjax("sample", f"--workdir={tmp_path}/run", "--num=10", out, "--steps=2")
    assert (code, result["nfe"]) == (0, 2), err
    code, _, err = flowjax("sample", f"--workdir={tmp_path}/run", "--solver=heun", "--steps=2", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "heun needs velocity, and this model offers flow_map, to_data: use" in err
