"""How well are the columns of a table learned: real numbers of very different scales, an integer and a category?

The table is that of the config `table`, whose formula is known: samples are compared with new rows of the formula, and
with the moments that follow from it. The same network learns all columns, the other columns given the plan (a category
as condition), or income and rate given plan and visits (a category and a number as conditions).
"""

import runpy
from functools import cache, partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowjax import metrics
from flowjax.config_files import shipped_configs
from flowjax.plots import DATA, SAMPLES
from flowjax.reproduce import Experiment, Form, Results, Study

TABLE = runpy.run_path(str(shipped_configs()["table"]))
COLUMNS = ("income", "rate", "visits", "plan")
ROWS = 20_000
SETTINGS: dict[str, tuple[str, ...]] = {
    "all columns": (),
    "given the plan": ("plan",),
    "given plan and visits": ("plan", "visits"),
}
GIVEN = {"plan": {"share_pro"}, "visits": {"visits_basic", "visits_pro"}}
"""What is given with a condition, and so not measured."""
TRUE, ASKED = 1, 2  # seeds of the rows that are compared with, and of those whose conditions are given


def numbers(table: dict[str, Any]) -> np.ndarray:
    """The columns of a table as numbers, (N, 4), with the level of the plan."""
    level = [TABLE["PLANS"].index(plan) for plan in table["plan"]]
    return np.stack([table["income"], table["rate"], table["visits"], level], -1).astype(float)


@cache
def rows(seed: int) -> np.ndarray:
    return numbers(TABLE["draw"](ROWS, seed))


def train(study: Study, name: str, seed: int) -> Any:
    steps = 500 if study.quick else 1000
    changes = {"seed": seed, "train.steps": steps, "train.log_every": steps, "data.cond": SETTINGS[name]}
    return study.train(f"{name.replace(' ', '_')}_{seed}", "table", changes)


def draw_samples(study: Study, name: str, seed: int) -> np.ndarray:
    """Samples as numbers, (N, 4); columns that are conditions are those of new rows of the formula."""
    run, conditions = train(study, name, seed), SETTINGS[name]
    asked = TABLE["draw"](ROWS, ASKED)
    shaped = {"plan": asked["plan"], "visits": asked["visits"][:, None]}
    cond = {column: shaped[column] for column in conditions} or None
    drawn = run.sample(ROWS, seed=seed, cond=cond, solver="heun", steps=20)
    features = [column.name for column in run.spec.columns if not column.condition]
    found = rows(ASKED).copy()
    found[:, [COLUMNS.index(column) for column in features]] = drawn
    return found


def scores(x: np.ndarray) -> dict[str, Any]:
    """What is measured of rows (N, 4); marginals and correlations are compared with other rows of the formula."""
    true = rows(TRUE)
    income, rate, visits, level = x.T
    marginal = metrics.marginal_distances(x, true)
    largest, rms = metrics.correlation_error(x, true)
    return {
        "marginal_w1": marginal.wasserstein.mean(),
        "marginal_w1_max": marginal.wasserstein.max(),
        "correlation_error": rms,
        "correlation_error_max": largest,
        "share_pro": (level == 2).mean(),
        "visits_basic": visits[level == 0].mean(),
        "visits_pro": visits[level == 2].mean(),
        "income_gap": (income[level == 2].mean() - income[level == 0].mean()) / 1e5,
        "rate_slope": np.polyfit(visits, rate * 1e5, 1)[0],
        "rate_std": rate.std() * 1e4,
    }


def of_samples(study: Study, name: str, seed: int) -> dict[str, Any]:
    given = {metric for column in SETTINGS[name] for metric in GIVEN[column]}
    found = scores(draw_samples(study, name, seed))
    return {metric: value for metric, value in found.items() if metric not in given}


def exact() -> dict[str, float]:
    """The moments that follow from the formula; Var(visits) = E(visits) + 9 Var(level)."""
    variance = 3.5 + 9 * (0.3 + 0.4 - 0.5**2)
    return {
        "share_pro": 0.1,
        "visits_basic": 2.0,
        "visits_pro": 8.0,
        "income_gap": 1.0,
        "rate_slope": 2.0,
        "rate_std": float(np.sqrt(1 + 0.04 * variance)),
    }


def run(study: Study) -> None:
    study.measure("formula, exactly", exact)
    for seed in study.seeds:
        study.measure("new rows of the formula", lambda seed=seed: scores(rows(100 + seed)), seed)
    for name in list(SETTINGS)[: 2 if study.quick else 3]:
        for seed in study.seeds:
            study.measure(name, partial(of_samples, study, name, seed), seed)


def draw(study: Study, results: Results) -> dict[str, Figure]:
    x = study.arrays("all_columns", lambda: {"x": draw_samples(study, "all columns", 0)})["x"]
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplots(2, 3)
    tables = {"data": (rows(TRUE), DATA), "samples": (x, SAMPLES)}
    for i, (ax, column) in enumerate(zip(axes[0], COLUMNS[:3], strict=True)):
        low, high = np.quantile(rows(TRUE)[:, i], [0.0005, 0.9995])
        bins = np.arange(0, high + 2) - 0.5 if column == "visits" else np.linspace(low, high, 50)
        for label, (table, colour) in tables.items():
            ax.hist(table[:, i], bins, density=True, histtype="step", color=colour, label=label, lw=1.5)
        ax.set(xlabel=column, yticks=[])
    plan, by_plan, by_visits = axes[1]
    few = np.arange(13)
    for k, (label, (table, colour)) in enumerate(tables.items()):
        level, visits = table[:, 3], table[:, 2]
        of = [level == j for j in range(3)]
        at = np.arange(3) + 0.4 * (k - 0.5)
        plan.bar(at, [one.mean() for one in of], 0.4, color=colour, label=label)
        by_plan.bar(at, [visits[one].mean() for one in of], 0.4, color=colour)
        by_visits.plot(few, [table[visits == v, 1].mean() for v in few], "o-", color=colour, ms=3)
    for ax in (plan, by_plan):
        ax.set_xticks(range(3), TABLE["PLANS"])
    plan.set(ylabel="share")
    by_plan.set(ylabel="mean visits")
    by_visits.set(xlabel="visits", ylabel="mean rate")
    axes[0, 0].legend()
    return {"own_data": figure}


EXPERIMENT = Experiment(
    title="How well are the columns of a table learned: real numbers of very different scales, an integer, a category?",
    source="",
    full=Form("4 minutes on 2 CPU cores", seeds=3),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={
        "marginal_w1_max": "largest W1 of a column (standard deviations)",
        "correlation_error_max": "largest error of a correlation",
        "share_pro": "share of pro",
        "visits_basic": "mean visits, basic",
        "visits_pro": "pro",
        "income_gap": "income of pro over basic (1e5)",
        "rate_slope": "rate by visit (1e-5)",
    },
    draw=draw,
)
