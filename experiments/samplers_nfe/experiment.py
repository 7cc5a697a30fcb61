"""Samplers at 8 to 128 evaluations, on one class-conditional network of the digits.

All samplers start from the same noise and labels. Quality is the Frechet distance between normals fitted to the pixels
(0 to 16) of the samples and of the 1,500 training images; for deterministic samplers also the root mean square distance
in model space to an adaptive dopri5 solve.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from flowjax import solvers
from flowjax.data.digits import open_digits
from flowjax.inference import Run
from flowjax.metrics.frechet import frechet_of_pixels
from flowjax.plots import lines
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.solvers import make_sampler, samplers
from flowjax.solvers.grids import GRIDS

DETERMINISTIC = ("euler", "heun", "rk4", "ab2", "ddim", "edm", "dpmpp_2m", "dpmpp_3m", "unipc")
STOCHASTIC = ("euler_maruyama", "stochastic_heun", "ddpm", "dpmpp_sde", "pc")
QUICK = ("euler", "heun", "ab2", "unipc", "euler_maruyama", "dpmpp_sde")
BUDGETS, REGRID_BUDGETS = (8, 16, 32, 64, 128), (8, 16, 32, 64)
REGRIDDED = [(name, grid) for name in ("edm", "dpmpp_2m") for grid in ("edm", "log_snr")]
BATCH = 1000


@dataclass(frozen=True)
class Problem:
    """A network, and the noise and labels that all samplers start from."""

    study: Study
    run: Run
    seed: int

    @cached_property
    def start(self) -> tuple[Any, np.ndarray]:
        """x0 and labels, as in training."""
        num = 2_000 if self.study.quick else 5_000
        return self.run.prior.sample(jax.random.key(2 * self.seed + 1), num), np.resize(images()[1], num)

    @cached_property
    def exact(self) -> dict[str, np.ndarray]:
        """The solution `x` (N, 8, 8, 1) in model space by an adaptive solver, and the largest number of evaluations."""

        def solve() -> dict[str, Any]:
            x, nfe = self.solve("dopri5", rtol=1e-5, atol=1e-5)
            return {"x": x, "nfe": nfe}

        return self.study.arrays(f"dopri5_seed{self.seed}", solve)

    def solve(self, name: str, **options: Any) -> tuple[np.ndarray, int]:
        """Samples in model space, and the largest number of evaluations."""
        x0, labels = self.start
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(2 * self.seed + 2)))(np.arange(len(x0)))
        parts, nfe = [], 0
        for rows in (slice(i, i + BATCH) for i in range(0, len(x0), BATCH)):
            cond = {"label": labels[rows]}
            x, stats = solvers.sample(self.run.model(), x0[rows], solver=name, key=keys[rows], cond=cond, **options)
            parts.append(np.asarray(x))
            nfe = max(nfe, int(stats.nfe.max()))
        return np.concatenate(parts), nfe

    def quality(self, x: np.ndarray) -> float:
        """The Frechet distance to the training images."""
        return frechet_of_pixels(self.run.spec.finish(x), images()[0])


def images() -> tuple[np.ndarray, np.ndarray]:
    """The training images and their labels."""
    rows = open_digits().arrays()
    return np.asarray(rows.x1), np.asarray(rows.cond["label"])


def scores(problem: Problem, name: str, grid: str, budgets: tuple[int, ...]) -> dict[str, float]:
    """A sampler with the most steps that each budget of evaluations allows."""
    found, sampler = {}, make_sampler(name, problem.run.path)
    assert sampler is not None  # no adaptive solver
    for budget in budgets:
        allowed = [n for n in range(1 + sampler.denoise, budget + 1) if samplers.evaluations(sampler, n) <= budget]
        x, found[f"nfe_{budget}"] = problem.solve(name, steps=max(allowed), grid=GRIDS[grid]())
        found[f"fd_{budget}"] = problem.quality(x)
        if name in DETERMINISTIC:
            found[f"rms_{budget}"] = np.sqrt(((x - problem.exact["x"]) ** 2).mean())
    return found


def references(problem: Problem) -> dict[str, float]:
    """The distances of the adaptive solver, of the test images, and between random halves of the training images."""
    x, order = images()[0], np.random.default_rng(0).permutation(len(images()[0]))
    first, second = np.array_split(x[order], 2)
    return {
        "fd": problem.quality(problem.exact["x"]),
        "nfe": int(problem.exact["nfe"]),
        "fd_test": frechet_of_pixels(open_digits().test, x),
        "fd_halves": frechet_of_pixels(first, second),
    }


def run(study: Study) -> None:
    small = {"model.width": 128, "train.steps": 2_000, "train.lr": 3e-3} if study.quick else {"model.width": 256}
    for seed in study.seeds:
        problem = Problem(study, study.train(f"digits{seed}", "digits", small | {"seed": seed}), seed)
        study.measure("dopri5", partial(references, problem), seed)
        budgets = (8, 32) if study.quick else BUDGETS
        for name in QUICK if study.quick else DETERMINISTIC + STOCHASTIC:
            study.measure(name, partial(scores, problem, name, "uniform", budgets), seed)
        for name, grid in [] if study.quick else REGRIDDED:
            study.measure(f"{name}, grid {grid}", partial(scores, problem, name, grid, REGRID_BUDGETS), seed)


def draw(study: Study, results: Results) -> dict[str, Figure]:
    budgets = (8, 32) if study.quick else BUDGETS
    known, distance = (
        {"dopri5, 1e-5": results.mean("dopri5", "fd")},
        "Frechet distance of pixels to the training images",
    )

    def curves(metric: str, names: tuple[str, ...]) -> dict[str, tuple[Any, list[float]]]:
        shown = [name for name in names if name in results.settings and name != "ddim"]  # it is euler on this path
        return {name: (budgets, [results.mean(name, f"{metric}_{budget}") for budget in budgets]) for name in shown}

    made = {
        "deterministic": lines(curves("fd", DETERMINISTIC), "evaluations", distance, references=known),
        "stochastic": lines(curves("fd", STOCHASTIC), "evaluations", distance, references=known),
        "error": lines(curves("rms", DETERMINISTIC), "evaluations", "RMS distance to dopri5, model space"),
    }
    for name in ("deterministic", "stochastic"):
        made[name].axes[0].set_ylim(0.8 * results.mean("dopri5", "fd"), 5 * results.mean("dopri5", "fd"))
    return made


EXPERIMENT = Experiment(
    title="Which sampler is best at 8, 16, 32, 64 and 128 evaluations, on a class-conditional network of digits?",
    source="",
    full=Form("4 minutes on 2 CPU cores"),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={"fd": "FD"}
    | {f"fd_{budget}": f"FD at {budget}" for budget in BUDGETS}
    | {f"rms_{budget}": f"RMS at {budget}" for budget in BUDGETS},
    draw=draw,
)
