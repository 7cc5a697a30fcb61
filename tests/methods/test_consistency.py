"""Consistency training against the flow between two normal distributions, and against the published discretisation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.build import build
from flowjax.config import resolve
from flowjax.couplings import INDEPENDENT
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.methods import Consistency, Context, Network
from flowjax.methods.consistency import grid, remaining
from flowjax.methods.consistency_function import consistency_function
from flowjax.methods.draw import draw
from flowjax.methods.errors_of_rows import SQUARED
from flowjax.methods.times import Fixed, LogNormal
from flowjax.models.functional import Variables
from flowjax.paths import GaussianPath
from flowjax.predictions import edm, noise, v, velocity
from flowjax.schedules import EDM, VE, VP, CondOT, Cosine, Polynomial
from flowjax.sources import Normal
from tests.methods.known_flow import Between, KnownFlow

KEY = jax.random.key(0)


@pytest.mark.parametrize("schedule", [CondOT(), CondOT(0.01), Cosine(), Polynomial(2), VP(), VE(), EDM()])
@pytest.mark.parametrize("prediction", [velocity, v, edm(0.5), noise], ids=lambda prediction: prediction.name)
def test_the_function_is_the_identity_at_the_last_time(schedule, prediction):
    """Equal times give equal coefficients, so both products in equation (1) are exactly 0."""
    path = GaussianPath(schedule)
    x, output = (jax.random.normal(jax.random.key(i), (6, 3)) for i in (0, 1))
    t = jnp.full(6, path.t_max)
    np.testing.assert_array_equal(consistency_function(path, prediction, t, x, output), x)
    np.testing.assert_array_equal(consistency_function(path, prediction, path.t_max, x, output), x)


def test_the_function_of_the_usual_parametrisations():
    """Karras et al. 2022, table 1: c_skip = s^2 / (sigma^2 + s^2) and c_out = sigma s / sqrt(sigma^2 + s^2), at the
    noise level 0 at the last time; sigma_min = 1e-6 changes f by 1e-6 times values of about 4, and rounding by less."""
    x, output = (jax.random.normal(jax.random.key(i), (6, 3)) for i in (0, 1))
    t = jnp.linspace(0.0, 0.9, 6)
    straight = consistency_function(GaussianPath(CondOT()), velocity, t, x, output)
    np.testing.assert_allclose(straight, x + (1 - t[:, None]) * output, atol=1e-6)
    schedule, s = EDM(1e-6, 2.0), 0.5
    sigma = schedule.sigma(t)[:, None]
    expected = (s**2 * x + sigma * s * jnp.sqrt(sigma**2 + s**2) * output) / (sigma**2 + s**2)
    np.testing.assert_allclose(consistency_function(GaussianPath(schedule), edm(s), t, x, output), expected, atol=1e-5)


def consistency(flow, prediction=velocity, **settings):
    network = Network.from_function(flow.output(prediction))
    return Consistency(network, flow.path, Normal((1,)), prediction, **settings)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize(("schedule", "prediction"), [(CondOT(), velocity), (Cosine(), v)])
def test_the_gradient_at_the_exact_map_vanishes_with_the_step_of_the_teacher(schedule, prediction, solver, order):
    """The solver misses x_t by h^(order + 1), and the weight divides by h. The relative error of the leading term is of
    order h, below 1/80 times a constant of order one, and shifts log2 of the ratio by half of it."""
    with jax.enable_x64(True):
        flow = KnownFlow(GaussianPath(schedule))
        batch, sizes = flow.batch(256), []
        for n in (80, 160, 320):
            method = consistency(
                flow,
                prediction,
                teacher=flow,
                drawn=Between(0.1, 0.9),
                spacing="remaining",
                first=n,
                last=n,
                row_loss=SQUARED,
                solver=solver,
            )
            gradient = jax.grad(lambda p, method=method: method.loss(p, flow.context, KEY, batch).value)(0.0)
            sizes.append(abs(float(gradient)))
        orders = np.log2(np.array(sizes[:-1]) / sizes[1:])
    np.testing.assert_allclose(orders, order, atol=0.1)


def test_a_tuned_denoiser_is_trained_towards_the_data_first():
    """With one interval the later time is the last one, where f is x_t, which is x1 where sigma is 0."""
    flow = KnownFlow(GaussianPath(CondOT()))
    batch = flow.batch(64)
    method = consistency(flow, drawn=Between(0.0, 1.0), spacing="remaining", first=1, last=1, row_loss=SQUARED)
    key_draw, key_times = jax.random.split(KEY)
    t = method.drawn(key_times, 64, flow.path, (0.0, 1.0)).t
    p = draw(key_draw, batch, flow.path, Normal((1,)), INDEPENDENT, (0.0, 1.0), Fixed(t)).sample
    error = np.mean((flow.flow_map(t, 1.0, p.x_t) - batch.x1) ** 2)
    loss = method.loss(0.0, Context(), KEY, batch)
    assert float(loss.metrics["squared_error"]) == pytest.approx(float(error), rel=1e-4)


def test_the_number_of_intervals_is_doubled():
    method = consistency(KnownFlow(GaussianPath(CondOT())), first=10, last=1280, doubling=100)
    counts = [float(method.intervals(step)) for step in (0, 99, 100, 350, 699, 700, 2_000_000_000)]
    assert counts == [10, 10, 20, 80, 640, 1280, 1280]
    assert float(dataclasses.replace(method, last=1000).intervals(700)) == 1000


def test_the_grid_and_the_times_are_those_of_improved_consistency_training():
    """Song & Dhariwal 2023, appendix A, in numpy: Karras' levels, the discretised normal distribution and the weights.

    The standard error of a frequency is at most sqrt(p / n), and the test allows 4 of them. The paper leaves out the
    noise levels above sigma_max, 0.3% of all, and those below sigma_min, which fall into the last interval here."""
    n, size = 10, 100_000
    schedule = EDM(0.002, 80.0)
    i = np.arange(n + 1)
    levels = (80 ** (1 / 7) + i / n * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    path = GaussianPath(schedule)
    drawn = LogNormal(-1.1, 2.0)(KEY, size, path, (0.0, 1.0)).t
    s, t = grid(drawn, jnp.float32(n), 0.0, 1.0)
    index = np.rint(np.asarray(s) * n).astype(int)
    np.testing.assert_allclose(schedule.sigma(s), levels[index], rtol=1e-4)
    np.testing.assert_allclose(schedule.sigma(t), levels[index + 1], rtol=1e-4)
    below = np.array([0.5 * (1 + math.erf((math.log(level) + 1.1) / (2.0 * 2**0.5))) for level in levels])
    shares = (below[:-1] - below[1:])[:-1]
    seen = np.bincount(index, minlength=n)[:-1] / size
    assert (np.abs(seen - shares)[1:] < 4 * np.sqrt(shares / size)[1:]).all()
    assert np.abs(seen[0] - shares[0] - (1 - below[0])) < 4 * np.sqrt(shares[0] / size)
    method = Consistency(Network.from_function(lambda p, t, x, cond: x), path, Normal((1,)))
    np.testing.assert_allclose(method._weight(s, t), 1 / (levels[index] - levels[index + 1]), rtol=2e-3)


def test_the_remaining_time_is_the_mapping_of_consistency_tuning():
    """r = (1 - 1 / n) t for the noise level t = 1 - time; the last time has no later one and a weight of 0."""
    drawn = jnp.array([0.0, 0.3, 1.0])
    s, t = remaining(drawn, jnp.float32(4), 0.0, 1.0)
    np.testing.assert_allclose(1 - t, 0.75 * (1 - s), rtol=1e-6)
    np.testing.assert_array_equal(remaining(drawn, jnp.float32(1), 0.0, 1.0)[1], 1.0)
    method = consistency(KnownFlow(GaussianPath(CondOT())))
    np.testing.assert_allclose(method._weight(s, t), [4 / 2**0.5, 4 / 0.7 / 2**0.5, 0.0], rtol=1e-5)


def test_the_pseudo_huber_distance_and_the_shared_dropout():
    """Of two intervals, the drawn times are in the second: s = 0.5 and t = 1, so the weight is 1 / (0.5 sqrt(2))."""
    keys, path = [], GaussianPath(CondOT())

    def apply(variables, t, x, cond, key=None, training=False):
        keys.append(key)
        return jnp.broadcast_to(variables.params, x.shape), variables.state

    network = Network(lambda key: Variables({}, {}), apply, takes_key=True)
    method = Consistency(network, path, Normal((4,)), drawn=Between(0.5, 0.9), first=2, last=2)
    batch, p = KnownFlow(path).batch(1, 4), jnp.array(3.0)
    one = method.loss(p, Context(training=True), KEY, batch)
    assert len(keys) == 2
    np.testing.assert_array_equal(*map(jax.random.key_data, keys))
    c, squared = 0.00054, float(one.metrics["squared_error"])
    assert float(one.value) == pytest.approx(2**0.5 * (math.sqrt(squared + c**2) - c), rel=1e-5)
    plain = dataclasses.replace(method, row_loss=SQUARED).loss(p, Context(training=True), KEY, batch)
    assert float(plain.value) == pytest.approx(2**0.5 * squared, rel=1e-5)


def test_the_target_has_no_gradient_and_may_be_of_an_average():
    flow = KnownFlow(GaussianPath(CondOT()))
    batch = flow.batch(64)
    plain = consistency(flow, drawn=Between(0.0, 0.5), row_loss=SQUARED)
    moving = dataclasses.replace(plain, target_half_life=100.0)
    assert (dict(plain.targets), dict(moving.targets)) == ({}, {"target": 100.0})
    value = lambda method, targets: lambda p: method.loss(p, Context(targets=targets), KEY, batch).value
    same = jax.grad(value(moving, {"target": jnp.array(0.7)}))(jnp.array(0.7))
    np.testing.assert_allclose(jax.grad(value(plain, {}))(jnp.array(0.7)), same, rtol=1e-6)
    other = jax.grad(value(moving, {"target": jnp.array(1.0)}))(jnp.array(0.7))
    assert abs(float(other) - float(same)) > 1e-3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"method": {"guidance": 2.0}},
            "^method.guidance 2 is the guidance of a teacher: set method.teacher, or use 1$",
        ),
        (
            {"method": {"guidance": 2.0, "teacher": "runs/a"}},
            "^method.guidance 2 needs conditions: set data.cond, or method.guidance=1$",
        ),
        ({"method": {"times": "importance"}}, "'importance' has importance weights"),
        ({"prediction": "data"}, "prediction 'data' is singular where sigma is 0: use 'velocity', 'v' or 'edm'$"),
        ({"path": {"noise": "bridge"}}, "adds new noise .* use source.name 'normal' and leave path.noise empty$"),
        ({"source": {"name": "uniform"}}, "adds new noise .* use source.name 'normal' and leave path.noise empty$"),
    ],
)
@pytest.mark.parametrize("name", ["consistency", "continuous_consistency"])
def test_what_has_no_meaning_is_refused(name, keys, message):
    config = {**keys, "method": {"name": name, **keys.get("method", {})}}
    with pytest.raises(ConfigError, match=message) as error:
        build(resolve(config), DataSpec("moons", (2,)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"spacing": "gird"}, "^method.spacing: .*'grid'"),
        ({"solver": "dopri"}, "^method.solver: unknown 'dopri'; did you mean"),
        ({"first": 20, "last": 10}, "^method.first 20 must not be above method.last 10$"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        build(resolve({"method": {"name": "consistency", **keys}}), DataSpec("moons", (2,)))


def test_from_the_command_line(flowjax, tmp_path):
    tiny = ["--config.train.steps=4", "--config.train.batch_size=32", "--config.train.log_every=2"]
    tiny += ["--config.model.width=8", "--config.model.depth=1", "--config.model.features=8"]
    base, run = f"--workdir={tmp_path}/base", f"--workdir={tmp_path}/run"
    code, _, err = flowjax("train", "--config=gaussians8", base, *tiny)
    assert code == 0, err
    start = [f"--config.train.start_from={tmp_path}/base", f"--config.method.teacher={tmp_path}/base"]
    code, _, err = flowjax("train", "--config=consistency_gaussians8", run, *tiny, *start)
    assert code == 0, err
    for flags, nfe in (((), 1), (("--steps=2",), 2), (("--solver=consistency", "--steps=3"), 3)):
        code, result, err = flowjax("sample", run, "--num=10", f"--out={tmp_path}/{nfe}.npz", *flags)
        assert code == 0, err
        assert result["nfe"] == nfe
    code, _, err = flowjax("sample", run, "--num=10", "--solver=heun", "--steps=2", f"--out={tmp_path}/no.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert "heun needs velocity, and this model offers to_data: use consistency" in err
