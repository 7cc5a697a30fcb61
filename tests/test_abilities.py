"""Models by ability: what each offers, what samplers ask for, and the shortest way to a velocity."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax import likelihood, oracles, predictions, solvers
from flowjax.abilities import VelocityField, abilities_of, interval_of, velocity_of, with_forward_mode
from flowjax.conditions import Field
from flowjax.guidance import Auto, ClassifierFree
from flowjax.methods import Network
from flowjax.models.functional import Variables
from flowjax.paths import AffinePath, Bridge, GaussianPath
from flowjax.reschedule import Rescheduled
from flowjax.schedules import VP, CondOT
from flowjax.sources import Normal

pytestmark = pytest.mark.analytic
PATH = GaussianPath(CondOT())
ORACLE = oracles.gaussian(PATH, 1.0, 0.5)
X = jax.random.normal(jax.random.key(0), (4, 2))
FIELDS = (Field("label", "label", num_classes=2, dropout=0.1),)
LABELS = {"label": jnp.array([0, 1, 0, 1])}


def network(t, x, cond):
    """Not linear in x, and with a condition; its null value -1 gives another output."""
    shift = 0.0 if cond is None else cond["label"][:, None]
    return jnp.sin(3 * x) + shift


@dataclass(frozen=True)
class Decay:
    """dx/dt = -x with a method `velocity` and the flow map x e^(s - t); no path."""

    interval: tuple[float, float] = (0.0, 0.5)

    def velocity(self, t, x, cond=None):
        return -x

    def flow_map(self, s, t, x, cond=None):
        return x * jnp.exp(s - t)


@dataclass(frozen=True)
class Stretch:
    """The bijection x = z e^a in each coordinate."""

    a: float = 0.7

    def forward(self, z, cond=None):
        return z * jnp.exp(self.a), jnp.full(z.shape[0], z[0].size * self.a)

    def inverse(self, x, cond=None):
        return x * jnp.exp(-self.a), jnp.full(x.shape[0], -x[0].size * self.a)


def test_what_each_model_offers():
    noisy = AffinePath(CondOT(), Bridge())
    read = lambda path, p: predictions.read(network, path, p)
    on_path = ("velocity", "ends")
    assert abilities_of(ORACLE) == (*on_path, "score")
    assert abilities_of(read(PATH, predictions.velocity)) == (*on_path, "score")
    assert abilities_of(read(AffinePath(CondOT()), predictions.velocity)) == on_path
    assert abilities_of(read(noisy, predictions.velocity)) == on_path
    assert abilities_of(read(noisy, predictions.velocity_score)) == (*on_path, "score")
    assert abilities_of(Auto(ORACLE, read(PATH, predictions.noise), 2.0)) == (*on_path, "score")
    assert abilities_of(ClassifierFree(read(AffinePath(CondOT()), predictions.velocity), 2.0)) == on_path
    assert abilities_of(Rescheduled(ORACLE, GaussianPath(VP()))) == (*on_path, "score")
    assert abilities_of(Decay()) == ("velocity", "flow_map")
    assert abilities_of(Stretch()) == ("bijection",)
    assert abilities_of(network) == ()


def test_intervals():
    assert interval_of(Stretch()) == (0.0, 1.0)
    assert interval_of(Decay()) == (0.0, 0.5)
    vp = GaussianPath(VP())
    assert interval_of(oracles.gaussian(vp, 1.0, 0.5)) == (vp.t_min, vp.t_max)


def test_the_velocity_of_a_velocity_network_is_its_output():
    """To the bit, also at times at which a detour through the ends would round, and of the first of two heads."""
    t = jnp.array([0.0, 1e-6, 0.5, 1.0])
    model = predictions.read(network, PATH, predictions.velocity)
    np.testing.assert_array_equal(model.velocity(t, X, LABELS), network(t, X, LABELS))
    two = lambda t, x, cond: jnp.concatenate([network(t, x, cond), x], -1)
    heads = predictions.read(two, AffinePath(CondOT(), Bridge()), predictions.velocity_score)
    np.testing.assert_array_equal(heads.velocity(0.5, X), network(0.5, X, None))


@pytest.mark.parametrize("prediction", [predictions.velocity, predictions.data], ids=lambda p: p.name)
@pytest.mark.parametrize("t", [0.3, (0.1, 0.3, 0.5, 0.8)], ids=str)
def test_guided_velocities_are_those_of_the_guided_ends(prediction, t):
    """Mixed directly or through the ends, they are one: conversions are linear. Float64 leaves the algebra alone."""
    with jax.enable_x64(True):
        x, t = jnp.asarray(X, jnp.float64), jnp.asarray(t)
        model = predictions.read(network, PATH, prediction)
        weak = predictions.read(lambda t, x, cond: jnp.cos(x), PATH, prediction)
        for guide in (
            ClassifierFree(model, 3.0, FIELDS, guidance_interval=(0.2, 0.6)),
            ClassifierFree(model, 3.0, FIELDS, rescale=0.7),
            Auto(model, weak, 2.0),
        ):
            through = predictions.velocity.from_ends(PATH, t, x, guide.ends(t, x, LABELS))
            np.testing.assert_allclose(guide.velocity(t, x, LABELS), through, rtol=1e-10, atol=1e-12)


def test_a_flow_map_and_a_plain_velocity_are_sampled_over_their_interval():
    """exp(-1/2) x in two jumps, exactly; RK4 with 20 steps of 1 / 40 is within 1e-7 of it; dopri5 within 1e-4."""
    jumped, cost = solvers.sample(Decay(), X, solver="flow_map", steps=2)
    np.testing.assert_allclose(jumped, X * np.exp(-0.5), rtol=1e-6)
    assert cost.nfe.tolist() == [2] * 4
    for solver, steps in (("rk4", 20), ("dopri5", None)):
        y, _ = solvers.sample(Decay(), X, solver=solver, steps=steps)
        np.testing.assert_allclose(y, X * np.exp(-0.5), rtol=1e-4)


def test_a_bijection_is_sampled_and_scored():
    """x = z e^a is N(0, e^2a): its density is known, and its samples are the stretched source."""
    model, x0 = Stretch(), X
    x, cost = solvers.sample(model, x0, solver="push_forward")
    np.testing.assert_allclose(x, x0 * np.exp(0.7), rtol=1e-6)
    log_p, _, scored = likelihood.log_prob(model, x, Normal((2,)))
    np.testing.assert_allclose(log_p, stats.norm(0, np.exp(0.7)).logpdf(np.asarray(x)).sum(1), rtol=1e-5)
    assert cost.nfe.tolist() == scored.nfe.tolist() == [1] * 4


def test_a_model_and_its_velocity_have_one_log_density():
    one, *_ = likelihood.log_prob(ORACLE, X, Normal((2,)), solver="rk4", steps=10)
    other, *_ = likelihood.log_prob(ORACLE.velocity, X, Normal((2,)), solver="rk4", steps=10)
    np.testing.assert_array_equal(one, other)


AFFINE = predictions.read(network, AffinePath(CondOT()), predictions.velocity)
NOISY = predictions.read(network, AffinePath(CondOT(), Bridge()), predictions.velocity)


@pytest.mark.parametrize(
    ("model", "keywords", "message"),
    [
        (
            Decay(),
            {"solver": "ddim", "steps": 3},
            "^ddim needs ends, and this model offers velocity, flow_map: use dop",
        ),
        (Decay(), {"solver": "sra1", "steps": 3}, "^sra1 needs ends and score, and this model offers"),
        (Decay(), {"solver": "euler", "steps": 3, "options": solvers.Options(g=1.0)}, "^euler needs ends and score"),
        (Decay(), {"solver": solvers.DDIM(PATH), "steps": 3}, "^DDIM needs ends"),
        (Decay(), {"solver": "heun", "steps": 3, "grid": "condot"}, "no path, so its grid must be 'uniform'"),
        (Decay(), {"solver": "leapfrogmidpoint", "steps": 3, "grid": "edm"}, "no path, so its grid must be 'uniform'"),
        (Decay(), {"solver": "flow_map"}, "pass steps=N"),
        (Decay(), {"solver": "flow_map", "steps": 3, "t1": 0.8}, "within \\[0, 0.5\\]"),
        (Stretch(), {}, "^dopri5 needs velocity, and this model offers bijection: use push_forward$"),
        (Stretch(), {"solver": "push_forward", "steps": 3}, "once: use 1 step, not 3, or leave the steps out$"),
        (Stretch(), {"solver": "push_forward", "t1": 0.5}, "no grid or times"),
        (ORACLE, {"solver": "flow_map", "steps": 3}, "^flow_map needs flow_map, and this model offers velocity, ends"),
        (network, {}, "offers nothing: .* flowjax.predictions.model$"),
        (AFFINE, {"solver": "ddpm", "steps": 3}, "^ddpm follows an SDE: this path has no score"),
        (NOISY, {"solver": "pc", "steps": 3}, "train with prediction 'velocity_score'; or use an ODE sampler"),
    ],
)
def test_a_missing_ability_is_one_line_that_names_solvers_that_would_do(model, keywords, message):
    with pytest.raises(ValueError, match=message) as error:
        solvers.sample(model, X, **keywords)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("as_users_call")
def test_a_density_needs_a_velocity_or_an_inverse():
    with pytest.raises(ValueError, match="offers nothing"):
        likelihood.log_prob(object(), X, Normal((2,)))


@dataclass(frozen=True)
class Switched:
    """A network that counts as switched once `with_forward_mode` was called."""

    forward: bool = False

    def with_forward_mode(self):
        return Switched(True)

    def __call__(self, t, x, cond=None):
        return x


def test_forward_mode_reaches_the_network_through_everything_in_front_of_it():
    model = predictions.read(Switched(), PATH, predictions.velocity)
    inner: Any = with_forward_mode(Rescheduled(Auto(ClassifierFree(model, 2.0, FIELDS), model, 2.0), PATH).velocity)
    assert inner.model.model.model.model.apply.forward
    assert inner.model.model.weak.apply.forward
    assert with_forward_mode(ORACLE) is ORACLE


@dataclass(frozen=True)
class Unbound:
    """A model that keeps a network and its variables apart, as that of normalizing flows does."""

    network: Network
    variables: Variables

    def velocity(self, t, x, cond=None):
        return self.network.apply(self.variables, t, x, cond)[0]


def test_forward_mode_reaches_a_network_that_is_not_bound():
    def apply(variables, t, x, cond, forward_mode=False):
        return x * (2.0 if forward_mode else 1.0), {}

    plain = Unbound(Network(lambda key: Variables({}, {}), apply, fused=True), Variables({}, {}))
    np.testing.assert_array_equal(with_forward_mode(plain).velocity(0.5, X), 2 * X)
    np.testing.assert_array_equal(with_forward_mode(velocity_of(plain))(0.5, X), 2 * X)
    np.testing.assert_array_equal(with_forward_mode(plain.network.bind({}, {}))(0.5, X, None), 2 * X)


def test_one_class_of_velocities():
    """Of models on a path, and of those with a plain method; equal for equal models."""
    assert velocity_of(ORACLE) == VelocityField(ORACLE)
    assert velocity_of(Decay()) == VelocityField(Decay())
    assert VelocityField(Decay()).interval == (0.0, 0.5)
    np.testing.assert_array_equal(velocity_of(Decay())(0.1, X), -X)
