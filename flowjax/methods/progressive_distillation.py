"""Progressive distillation: a student takes one DDIM step where its teacher takes two (Salimans & Ho 2022,
arXiv:2202.00512).

The times of a student with N steps are those of the sampler `ddim` with N steps on its default grid, and the last time
of the path; papers number them from the data. For one interval from s to t of this grid, with the middle m on the
teacher's grid of 2 N steps, and a point x_s of the path, the teacher takes two steps of DDIM,

    (1)  x_m = alpha_m x1 + sigma_m x0,    x0, x1 = posterior means of the teacher at (s, x_s),
         x_t in the same way from x_m

The student learns the posterior means x0' and x1' at (s, x_s) for which a single step of DDIM also ends at x_t:

    (2)  x_s = alpha_s x1' + sigma_s x0',    x_t = alpha_t x1' + sigma_t x0'

whose solution for x1' is the target of the paper (its algorithm 2 and appendix G). The loss is the squared error of the
student's prediction against the prediction that belongs to (x0', x1'). For the prediction `v` on the schedule `cosine`
it is the paper's loss with the weight SNR + 1.

A run halves the number of steps once. The next round has this run as `method.teacher` and `train.start_from`, and half
of its `method.steps`. The first teacher is a flow matching run, whose velocity may be guided. Between the times of its
grid the student is an interpolation of its network, so it is sampled with its own number of steps, which is the
default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax import predictions
from flowjax.abilities import Ends
from flowjax.batch import Batch
from flowjax.couplings import INDEPENDENT, Coupling
from flowjax.errors import ConfigError
from flowjax.methods.base import Context, Limit, Loss, Network, PathMethod
from flowjax.methods.components import Components
from flowjax.methods.draw import MARGINAL_ERROR, draw, row_mean_square
from flowjax.methods.teacher import check_guidance, teacher_velocity
from flowjax.methods.times import Fixed
from flowjax.paths.affine import AffinePath
from flowjax.predictions import Prediction, velocity
from flowjax.ranges import Range
from flowjax.solvers import grids
from flowjax.solvers.samplers import blend
from flowjax.sources import Source
from flowjax.typing import Params, PRNGKey, PyTree

__all__ = ["ProgressiveDistillation", "step_ends"]


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        steps: the number N of steps of the student, half of those of the teacher.
        teacher: the workdir of the trained run that is distilled. `train.start_from` should name the same run.
        guidance: the scale of the teacher's classifier-free guidance; 1 for none, as in later rounds, in which the
            teacher is already guided.
    """

    steps: Annotated[int, Range(1, 2**20)] = 8
    teacher: str = ""
    guidance: Annotated[float, Range(0, 1000)] = 1.0


@dataclass(frozen=True)
class ProgressiveDistillation(PathMethod):
    """One round of progressive distillation on an affine path.

    Attributes:
        network: `network(t, x, cond) -> output`.
        path, source, coupling: the path of x_s, the distribution of x0, and how x0 and x1 are paired.
        teacher: the method of the run that is distilled.
        prediction: the meaning of the network's output.
        guidance: as in `Settings`.
        student_steps: `steps` of `Settings`.
    """

    network: Network
    path: AffinePath
    source: Source
    teacher: Any
    coupling: Coupling = INDEPENDENT
    prediction: Prediction = velocity
    guidance: float = 1.0
    student_steps: int = 8

    Settings: ClassVar[type] = Settings
    sections: ClassVar[tuple[str, ...]] = ("source", "path", "coupling", "prediction", "model")
    metrics: ClassVar[tuple[str, ...]] = ("marginal_error", "squared_error")
    limits: ClassVar[Mapping[str, Limit]] = {"marginal_error": MARGINAL_ERROR}
    sampler: ClassVar[str] = "ddim"

    @classmethod
    def from_config(cls, parts: Components) -> "ProgressiveDistillation":
        settings, prediction, path = parts.settings, parts.prediction, parts.path
        what = "method.name 'progressive_distillation'"
        if parts.teacher is None:
            raise ConfigError(f"{what} needs a trained run: set method.teacher and train.start_from to its workdir")
        check_guidance(parts, settings.guidance)
        if path.noise is not None or prediction.heads > 1:
            raise ConfigError(f"{what} needs a path without noise and a prediction with one head: use 'velocity'")
        with jax.ensure_compile_time_eval():
            left = float(path.schedule.sigma(path.t_max))
        if left > 0 or prediction.interval(path)[1] < path.t_max:
            raise ConfigError(
                f"{what} needs a path that ends at the data and a prediction that is defined there: use path.schedule "
                "'condot' or 'cosine' and prediction 'velocity', 'v' or 'edm'"
            )
        network = parts.network()
        return cls(
            network, path, parts.source, parts.teacher, parts.coupling, prediction, settings.guidance, settings.steps
        )

    @property
    def steps(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The student's number of steps."""
        return self.student_steps

    @property
    def trained_steps(self) -> tuple[int, ...]:
        return (self.student_steps,)

    @property
    def interval(self) -> tuple[float, float]:
        return self.prediction.interval(self.path)

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        key_draw, key_step = jax.random.split(key)
        times = grids.condot(self.path.schedule, *self.interval, 2 * self.student_steps + 1)
        i = 2 * jax.random.randint(key_step, (batch.x1.shape[0],), 0, self.student_steps)
        s, m, t = (times[i + k] for k in range(3))
        p, _, marginal_error = draw(key_draw, batch, self.path, self.source, self.coupling, self.interval, Fixed(s))
        x_t = p.x_t
        for now, after in ((s, m), (m, t)):
            v = teacher_velocity(self.teacher, context, now, x_t, batch.cond, self.guidance)
            x_t = blend(self.path, after, x_t, velocity.to_ends(self.path, now, x_t, v))
        target = self.prediction.from_ends(self.path, s, p.x_t, step_ends(self.path, s, t, p.x_t, x_t))
        inputs = self.prediction.inputs(self.path, s, p.x_t)
        output, state = self.network(params, context, s, inputs, batch.cond, key=key)
        errors = row_mean_square(output - jax.lax.stop_gradient(target))
        metrics = {"marginal_error": marginal_error, "squared_error": jnp.mean(errors)}
        return Loss(jnp.mean(self.prediction.weight(self.path, s) * errors), metrics, state)

    def model(self, params: Params, state: PyTree) -> Any:
        return predictions.read(self.network.bind(params, state), self.path, self.prediction)


def step_ends(path: AffinePath, s: Array, t: Array, x_s: Array, x_t: Array) -> Ends:
    """The ends (x0', x1') with which a step of DDIM goes from x_s to x_t: the solution of equation (2).

    Args:
        path: the path, without noise.
        s, t: the two times, (B,), s < t.
        x_s, x_t: the points, (B, *event).
    """
    now, after = path.rates(s, x_s), path.rates(t, x_s)
    d = now.alpha * after.sigma - after.alpha * now.sigma
    return Ends((now.alpha * x_t - after.alpha * x_s) / d, (after.sigma * x_s - now.sigma * x_t) / d)
