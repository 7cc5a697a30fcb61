"""Loss weights and time samplers: two choices, each against formulas in float64 and against expectations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax import methods, oracles
from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import resolve
from flowjax.couplings import Sinkhorn
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.methods import times, weighted_times, weights
from flowjax.names import PREDICTIONS
from flowjax.paths import AffinePath, GaussianPath
from flowjax.predictions import data, edm, noise, noise_variance, score, v, velocity
from flowjax.schedules import EDM, VP, CondOT, Cosine, ddpm_linear
from flowjax.sources import Normal

pytestmark = pytest.mark.analytic
PATH = GaussianPath(CondOT())
T = jnp.array([0.1, 0.3, 0.6, 0.9])
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("weighting", "on_data"),
    [
        (weights.uniform(data), lambda a, s: 1 + 0 * a),
        (weights.uniform(noise), lambda a, s: a**2 / s**2),
        (weights.uniform(velocity), lambda a, s: 1 / s**2),  # CondOT: v = (x1 - x_t) / (1 - t)
        (weights.uniform(v), lambda a, s: (a**2 + s**2) ** 2 / s**2),
        (weights.uniform(score), lambda a, s: a**2 / s**4),
        (weights.uniform(edm(0.5)), lambda a, s: ((s / a) ** 2 + 0.25) / (s / a * 0.5) ** 2),
        (weights.min_snr(5.0), lambda a, s: np.minimum(a**2 / s**2, 5)),
        (weights.sigmoid(-2.0), lambda a, s: (1 / a + 1 / s) * a**2 / s**2 / (1 + np.exp(2 + np.log(a**2 / s**2)))),
        (weights.likelihood(), lambda a, s: (1 / a + 1 / s) * a**2 / s**2),  # d log SNR / dt = 2 (1 / t + 1 / (1 - t))
    ],
)
@pytest.mark.parametrize("own", [data, noise, velocity, v, edm(1.5)], ids=lambda p: p.name)
def test_a_weight_means_the_same_whatever_the_network_predicts(weighting, on_data, own):
    """Published weights on the data's error, against the weight on the network's own error over its squared gain."""
    t = np.asarray(T, np.float64)
    expected = on_data(t, 1 - t)
    per_data = weighting(PATH, own, T) * (own.gain(PATH, T) / data.gain(PATH, T)) ** 2
    np.testing.assert_allclose(per_data, expected, rtol=1e-4)


def test_the_gain_is_infinite_only_where_a_prediction_says_so():
    """CondOT at t = 1, where sigma is 0. Training times then keep away from t = 1."""
    for kind in PREDICTIONS.values():
        prediction = kind()
        if prediction.heads == 1:
            finite = bool(jnp.isfinite(prediction.gain(PATH, jnp.array([1.0])))[0])
            assert finite != prediction.gain_needs_sigma
            assert (weights.uniform(prediction).interval(PATH, velocity)[1] == 1.0) == finite


def test_a_prediction_that_learns_the_variance_needs_the_bound_whatever_its_name(monkeypatch):
    monkeypatch.setitem(PREDICTIONS, "mine", lambda: dataclasses.replace(noise_variance, name="mine"))
    with pytest.raises(ConfigError, match="prediction 'mine' needs the variational bound"):
        build(resolve({"prediction": "mine"}), DataSpec("moons", (2,)))


def test_the_bias_of_the_sigmoid_weight_has_the_sign_of_the_papers():
    """By hand on CondOT at t = 1/4, where log SNR = -2 log 3 and its slope is 2 (4 + 4/3) = 32/3; bias -3.

    Kingma & Gao: sigmoid(-3 + 2 log 3) = 1 / (1 + e^3 / 9) on the noise's error. Hoogeboom et al.: on the data's error,
    e^-3 sigmoid(-2 log 3 + 3) = e^-3 / (1 + 9 / e^3). Both times slope / 2.
    """
    t, weighting = jnp.array([0.25]), weights.sigmoid(-3.0)
    assert float(weighting(PATH, noise, t)[0]) == pytest.approx(16 / 3 / (1 + np.e**3 / 9), rel=1e-5)
    assert float(weighting(PATH, data, t)[0]) == pytest.approx(16 / 3 * np.e**-3 / (1 + 9 / np.e**3), rel=1e-5)


def test_equal_losses_for_equal_denoisers():
    """One imperfect denoiser read as noise and as velocity has one likelihood-weighted loss, draw by draw."""
    wrong = oracles.gaussian(PATH, 0.3, 0.7)
    x1 = 0.5 * jax.random.normal(KEY, (256, 2))
    weighting = weights.likelihood()
    values = []
    for p in (noise, velocity, v):
        net = lambda params, t, x, cond, p=p: p.from_ends(PATH, t, x, wrong.ends(t, x))
        loss = methods.conditional(net, PATH, Normal((2,)), None, p, times.Uniform(), weighting)
        assert weighting.interval(PATH, p) == weighting.interval(PATH, noise)
        values.append(float(loss(None, KEY, Batch(x1))))
    np.testing.assert_allclose(values, values[0], rtol=1e-4)


def test_the_likelihood_weight_is_the_negative_elbo():
    """With the oracle, integral of the weighted noise error minus that of the true noise's variance is the entropy gap:

    for data N(0, s^2) and network std s', d/ds' of the loss is that of the cross entropy log s' + s^2 / (2 s'^2), as
    the bound is tight over an infinite range of SNR; on [1e-3, 1 - 1e-3] to about 1e-2. The integral is over a fixed
    grid.
    """
    s = 0.5
    t = jnp.linspace(*weights.likelihood().interval(PATH, noise), 40_001)

    def loss(std):
        # E |x0 - E'[x0 | x_t]|^2 in closed form: both are linear in x_t = a x1 + b x0
        a, b = t, 1 - t
        k = b / (a**2 * std**2 + b**2)
        error = (1 - k * b) ** 2 + (k * a * s) ** 2
        return jnp.trapezoid(weights.likelihood()(PATH, noise, t) * error, t)

    with jax.enable_x64(True):
        for other in (0.4, 0.8):
            expected = 1 / other - s**2 / other**3
            assert float(jax.grad(loss)(other)) == pytest.approx(expected, rel=2e-2)


def moments(t, mean, std):
    """Mean and variance of alpha x1 + sigma x0 on a VP path in float64, for data N(mean, std^2)."""
    a, b = (np.asarray(f(t), np.float64) for f in (VP().alpha, VP().sigma))
    return a * mean, (a * std) ** 2 + b**2


def kl(p, q):
    """KL(N(p) | N(q)) of pairs of mean and variance."""
    return 0.5 * (np.log(q[1] / p[1]) + (p[1] + (p[0] - q[0]) ** 2) / q[1] - 1)


@pytest.mark.parametrize("c", [1.0, 0.8])
def test_the_likelihood_weighted_loss_bounds_the_divergence_of_the_sde(c):
    """Song et al. 2021, theorem 1, in one dimension: data p = N(0.5, 0.6^2), and a network with c times the score of
    q = N(0, 1.2^2) and its noised distributions. With J the weighted squared error of the score,

        KL(p_last | model) <= KL(p_first | q_first) + J

    where the model is the SDE from q_first with the score of the network, dX = (a X + g^2 c score_q) dt + g dW with
    a = d log alpha / dt. Its mean and variance solve linear ODEs, here by rk4 with 10,000 steps. For c = 1 the model at
    time t is q_t, and both sides are equal (to 1e-3, for an integral by 20,001 times and a float32 derivative of the
    schedule); for c = 0.8 they are not.

    The loss of the method, minus that of the exact score on the same samples, is J within 4 standard errors, for
    uniform times, and for times of uniform log-SNR, with which the loss varies less than half as much.
    """
    path, (m, s), (m_q, s_q) = GaussianPath(VP()), (0.5, 0.6), (0.0, 1.2)
    low, high = weights.likelihood().interval(path, noise)
    t = np.linspace(low, high, 20_001)
    with jax.enable_x64(True):
        sigma = np.asarray(VP().sigma(jnp.asarray(t)))
        slope = np.asarray(jax.vmap(jax.grad(VP().log_snr))(jnp.asarray(t)))
        a = np.asarray(jax.vmap(jax.grad(lambda t: jnp.log(VP().alpha(t))))(jnp.asarray(t)))
        (mean, var), (mean_q, var_q) = moments(jnp.asarray(t), m, s), moments(jnp.asarray(t), m_q, s_q)
    # score_p - c score_q = -(x - mean) / var + c (x - mean_q) / var_q is linear in x ~ N(mean, var)
    square = (c / var_q - 1 / var) ** 2 * var + (c * (mean - mean_q) / var_q) ** 2
    g2 = sigma**2 * slope
    bound = kl((mean[0], var[0]), (mean_q[0], var_q[0])) + np.trapezoid(0.5 * g2 * square, t)
    pull, shift = a - c * g2 / var_q, c * g2 * mean_q / var_q
    rate = lambda i, y: np.array([pull[i] * y[0] + shift[i], 2 * pull[i] * y[1] + g2[i]])
    y = np.array([mean_q[0], var_q[0]])
    for i in range(0, len(t) - 1, 2):  # steps of two intervals, whose middle is a grid point
        h = t[i + 2] - t[i]
        k1 = rate(i, y)
        k2 = rate(i + 1, y + h / 2 * k1)
        k3 = rate(i + 1, y + h / 2 * k2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + rate(i + 2, y + h * k3))
    divergence = kl((mean[-1], var[-1]), (y[0], y[1]))
    if c == 1:
        np.testing.assert_allclose(y, (mean_q[-1], var_q[-1]), rtol=1e-3, atol=1e-3)
        assert divergence == pytest.approx(bound, abs=1e-3)
    else:
        assert divergence < bound - 0.01

    x1 = m + s * jax.random.normal(jax.random.key(8), (4096, 1))
    own, exact = oracles.gaussian(path, m_q, s_q), oracles.gaussian(path, m, s)
    spread = {}
    for drawn in (times.Uniform(), weighted_times.UniformLogSNR(stratified=True), weighted_times.UniformLogSNR()):
        losses = [
            methods.conditional(net, path, Normal((1,)), None, noise, drawn, weights.likelihood())
            for net in (
                lambda params, t, x, cond: c * own.ends(t, x).x0,
                lambda params, t, x, cond: exact.ends(t, x).x0,
            )
        ]
        both = lambda key, losses=losses: jnp.stack([loss(None, key, Batch(x1)) for loss in losses])
        values = np.asarray(jax.jit(jax.vmap(both))(jax.random.split(KEY, 60))) * (high - low)
        spread[drawn], found = values[:, 0].std(), values[:, 0] - values[:, 1]
        error = 4 * found.std() / np.sqrt(60) + 4 * abs(np.trapezoid(0.5 * g2 * square, t)) / np.sqrt(4096)
        assert abs(found.mean() - np.trapezoid(0.5 * g2 * square, t)) < error
    assert spread[weighted_times.UniformLogSNR()] < spread[times.Uniform()] / 2


def test_times_of_uniform_log_snr_have_that_law_and_its_weights():
    """Kolmogorov-Smirnov at level 1e-3 for log SNR; the weights times the likelihood weight of the noise are constant,
    to the rounding of float32 times near the ends; and the weighted mean of f is that of uniform times."""
    path = GaussianPath(VP())
    low, high = weights.likelihood().interval(path, noise)
    t, w = samples(weighted_times.UniformLogSNR(), path, (low, high))
    first, last = (float(VP().log_snr(edge)) for edge in (low, high))
    log_snr = np.asarray(VP().log_snr(jnp.asarray(t)), np.float64)
    assert stats.kstest(log_snr, stats.uniform(first, last - first).cdf).pvalue > 1e-3
    products = w * np.asarray(weights.likelihood()(path, noise, jnp.asarray(t, jnp.float32)))
    np.testing.assert_allclose(products, (last - first) / (2 * (high - low)), rtol=2e-3)
    f = t * w
    assert f.mean() == pytest.approx((low + high) / 2, abs=5 * f.std() / np.sqrt(len(f)))


def test_the_sigmoid_weight_is_an_integral_over_log_snr():
    """The same for every schedule: closed-form noise errors of a wrong normal, on 40,001 times of CondOT and of
    cosine."""

    def total(schedule):
        path = GaussianPath(schedule)
        t = jnp.linspace(*weights.sigmoid().interval(path, noise), 40_001)
        r = path.rates(t, t)
        k = r.sigma / (r.alpha**2 * 0.64 + r.sigma**2)
        error = (1 - k * r.sigma) ** 2 + (k * r.alpha * 0.5) ** 2
        return float(jnp.trapezoid(weights.sigmoid(-1.0)(path, noise, t) * error, t))

    with jax.enable_x64(True):
        assert total(CondOT()) == pytest.approx(total(Cosine()), rel=1e-4)


def samples(sampler, path=PATH, interval=(0.0, 1.0), profile=None, n=20_000):
    drawn = sampler(KEY, n, path, interval, profile)
    return np.asarray(drawn.t, np.float64), np.asarray(drawn.weight)


def test_time_samplers_have_the_laws_they_say():
    """Kolmogorov-Smirnov at level 1e-3 with a fixed key."""
    assert stats.kstest(samples(times.Uniform(), interval=(0.2, 0.7))[0], stats.uniform(0.2, 0.5).cdf).pvalue > 1e-3
    assert stats.kstest(samples(times.Stratified())[0], "uniform").pvalue > 1e-3
    t, _ = samples(times.LogitNormal(0.5, 0.8))
    assert stats.kstest(np.log(t / (1 - t)), stats.norm(0.5, 0.8).cdf).pvalue > 1e-3
    path = GaussianPath(EDM())
    t, _ = samples(times.LogNormal(-1.2, 1.2), path)
    log_sigma = np.log(np.asarray(EDM().sigma(t)))
    assert stats.kstest(log_sigma, stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3


def test_stratified_times_are_even():
    t = np.sort(samples(times.Stratified(), n=100)[0])
    np.testing.assert_allclose(np.diff(t), 0.01, atol=1e-5)
    assert not np.all(np.diff(samples(times.Stratified(), n=100)[0]) > 0)  # shuffled


def test_levels_are_those_of_the_chain():
    schedule = ddpm_linear(50)
    t, _ = samples(times.Levels(50), GaussianPath(schedule), (0.0, schedule.t_max))
    assert len(np.unique(t)) == 50
    np.testing.assert_allclose(np.unique(t), schedule.times, atol=1e-6)


def test_importance_is_unbiased_and_follows_the_profile():
    """E[weight f(t)] is the uniform mean whatever the profile, and times gather where it is high."""
    profile = jnp.linspace(0.0, 3.0, weighted_times.BINS)
    t, w = samples(weighted_times.Importance(), profile=profile, n=200_000)
    f = np.sin(3 * t) * w
    assert f.mean() == pytest.approx((1 - np.cos(3)) / 3, abs=5 * f.std() / np.sqrt(len(f)))
    assert (t > 0.5).mean() > 0.7
    with pytest.raises(ValueError, match="needs a learned profile"):
        samples(weighted_times.Importance())


def test_the_profile_learns_the_logarithm_of_the_loss():
    """Gradient descent on the profile alone: u goes to log E[L | t] of a net that predicts 0, and the value is
    unchanged.

    CondOT from N(0, 1) to N(0, 4) in 8 dimensions: E|dx_t|^2 / 8 = 5 at all t.
    """
    zero = lambda params, t, x, cond: 0 * x
    # `even` = 1 draws times uniformly, and has a profile
    make = lambda uncertainty: methods.conditional(
        zero, PATH, Normal((8,)), times=weighted_times.Importance(1.0), uncertainty=uncertainty
    )
    plain = methods.conditional(zero, PATH, Normal((8,)))
    x1 = 2 * jax.random.normal(jax.random.key(5), (4096, 8))
    for uncertainty in (False, True):
        loss = jax.jit(jax.value_and_grad(make(uncertainty)))
        params, value = {"network": {}, "profile": jnp.zeros(weighted_times.BINS)}, jnp.inf
        for i in range(60):
            value, grad = loss(params, jax.random.fold_in(KEY, i), Batch(x1))
            params = jax.tree.map(lambda p, g: p - 10.0 * g, params, grad)
        np.testing.assert_allclose(params["profile"], np.log(5.0), atol=0.15)
        if not uncertainty:
            assert float(value) == pytest.approx(float(plain(params, jax.random.fold_in(KEY, 59), Batch(x1))), rel=1e-5)


def test_the_marginal_error_is_a_metric_of_the_loss():
    network = methods.Network.from_function(lambda p, t, x, c: x)
    method = methods.FlowMatching(network, AffinePath(CondOT()), Normal((2,)), Sinkhorn(0.01, max_sweeps=2))
    loss = method.loss(None, methods.Context(), KEY, Batch(jax.random.normal(KEY, (32, 2))))
    assert loss.metrics["marginal_error"] > method.limits["marginal_error"].largest == 0.05


@pytest.mark.parametrize(
    "bad",
    [
        lambda: times.LogitNormal(0.0, 0.0),
        lambda: times.LogNormal(0.0, -1.0, True),
        lambda: times.Levels(1),
        lambda: weighted_times.Importance(0.0),
        lambda: weights.min_snr(0.0),
    ],
)
def test_refusals(bad):
    with pytest.raises(ValueError, match=r"positive|at least 2|in \(0, 1\]"):
        bad()


def test_intervals_keep_away_from_infinite_weights():
    assert weights.NATIVE.interval(PATH, velocity) == (0.0, 1.0)
    low, high = weights.likelihood().interval(PATH, velocity)
    assert 0 < low < high < 1
    assert weights.uniform(score).interval(PATH, velocity)[1] < 1
    assert np.isfinite(weights.min_snr()(GaussianPath(Cosine()), velocity, jnp.array([0.0, 1.0]))).all()
    assert weights.NATIVE.interval(GaussianPath(VP()), v) == (VP.t_min, VP.t_max)


LAWS = {  # a sampler, the schedule that it is drawn on, and its quantile at which a drawn t lies, in float64
    "logit_normal": (times.LogitNormal, CondOT(), lambda t: stats.norm(-0.4, 0.8).cdf(np.log(t / (1 - t)))),
    "log_normal": (times.LogNormal, EDM(), lambda t: stats.norm(-0.4, 0.8).cdf(np.log(np.asarray(EDM().sigma(t))))),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_stratified_normal_has_one_time_in_every_stratum(name):
    """n quantiles i / n + shift / n, whatever the order. Times are float32: n f(t) 2^-24 with a slope of the quantile
    in t of at most 100 here, and ndtri to 1e-6, for n = 64 below 1e-3 of a stratum."""
    sampler, schedule, quantile = LAWS[name]
    n, path = 64, GaussianPath(schedule)
    shifts = []
    for seed in range(4):
        drawn = sampler(-0.4, 0.8, stratified=True)(jax.random.key(seed), n, path, (path.t_min, path.t_max), None)
        place = n * quantile(np.asarray(drawn.t, np.float64))
        shift = np.sort(place) - np.arange(n)
        np.testing.assert_allclose(shift, shift.mean(), atol=1e-3)
        assert -1e-3 < shift.mean() < 1 + 1e-3
        assert np.any(np.diff(place) > 0)  # shuffled
        assert np.any(np.diff(place) < 0)
        np.testing.assert_array_equal(drawn.weight, 1)
        shifts.append(shift.mean())
    assert np.ptp(shifts) > 0.05  # and shifted anew each time


@pytest.mark.parametrize("name", LAWS)
def test_each_time_of_a_stratified_normal_has_the_law_of_a_lone_one(name):
    """The first of 8, over 4,000 keys: Kolmogorov-Smirnov at level 1e-3 with fixed keys."""
    sampler, schedule, quantile = LAWS[name]
    path = GaussianPath(schedule)
    drawn = sampler(-0.4, 0.8, True)
    first = lambda key: drawn(key, 8, path, (path.t_min, path.t_max), None).t[0]
    t = np.asarray(jax.jit(jax.vmap(first))(jax.random.split(KEY, 4000)), np.float64)
    assert stats.kstest(quantile(t), "uniform").pvalue > 1e-3


def test_the_mean_of_a_stratified_batch_hardly_moves():
    """Times rise from stratum to stratum, so their mean over n of them differs from its expectation, here 1/2, by at
    most the range over n: for every key. One uniform shift moves it by that range, so its deviation is
    1 / (n sqrt(12)). Of n independent ones it has deviation 0.208 / sqrt(n), for n = 64 1.7 / n: six times as much."""
    n = 64
    means = lambda stratified: jax.jit(
        jax.vmap(lambda key: times.LogitNormal(0.0, 1.0, stratified)(key, n, PATH, (0.0, 1.0), None).t.mean())
    )(jax.random.split(KEY, 300))
    assert float(jnp.abs(means(True) - 0.5).max()) < 1 / n + 1e-6
    assert float(means(True).std()) < float(means(False).std()) / 4
    assert float(jnp.abs(means(False) - 0.5).max()) > 2 / n


def test_independent_normal_times_are_as_they_were():
    """The draws of runs made before there was a choice, bit for bit."""
    z = jax.random.normal(KEY, (16,))
    t, _ = samples(times.LogitNormal(0.5, 0.8), n=16)
    np.testing.assert_array_equal(t.astype(np.float32), jax.nn.sigmoid(0.5 + 0.8 * z))
    path = GaussianPath(EDM())
    t, _ = samples(times.LogNormal(), path, n=16)
    np.testing.assert_array_equal(t.astype(np.float32), path.schedule.time_of_log_snr(-2 * (-1.2 + 1.2 * z)))


def test_the_ends_of_a_stratified_grid_stay_finite(monkeypatch):
    """A shift of 0, and one that float32 rounds up to the next stratum: quantiles 0 and 1 without the clip."""
    for shift in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(jax.random, "uniform", lambda key, shift=shift: jnp.float32(shift))
        z = times._normal(KEY, 512, True)
        assert bool(jnp.isfinite(z).all())
        assert float(jnp.abs(z).max()) < 5.5
