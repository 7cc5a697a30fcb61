"""`flowjax sweep`: its grid, its table, what it does again and what it survives."""

import json
import statistics

import pytest

from flowjax.cli.sweep import _take_grid

SMALL = [
    "--config.train.steps=20",
    "--config.train.batch_size=32",
    "--config.train.warmup=0.0",
    "--config.model.width=8",
]


def test_the_grid_is_read_from_words():
    words = ["--config", "moons", "--grid", "train.lr=1e-3,3e-3", "seed=0..2", "--workdir", "w"]
    grid, rest = _take_grid([*words, "--grid=path.schedule=vp,polynomial(2,3)", "--grid=model.multipliers=(1,2),(1,)"])
    grid |= _take_grid(["--grid=mesh.rules=((1,2),(3,4)),()"])[0]
    assert grid == {
        "train.lr": [1e-3, 3e-3],
        "seed": [0, 1, 2],
        "path.schedule": ["vp", "polynomial(2,3)"],
        "model.multipliers": [(1, 2), (1,)],
        "mesh.rules": [((1, 2), (3, 4)), ()],
    }
    assert rest == ["--config", "moons", "--workdir", "w"]


def test_a_table_over_seeds(flowjax, tmp_path, monkeypatch):
    """Mean and deviation are those of the runs' last records; a second call trains nothing; one that failed is told."""
    from flowjax.inference import figures

    monkeypatch.setattr(figures, "draw_all", lambda *a: None)
    command = ["sweep", "--config", "moons", "--workdir", str(tmp_path / "w"), *SMALL, "--grid"]
    code, result, error = flowjax(*command, "train.lr=1e-3,1e-2", "seed=0..1")
    assert code == 0, error
    assert [(row["point"], row["runs"]) for row in result["table"]] == [("train.lr=0.001", 2), ("train.lr=0.01", 2)]
    last = lambda lr, seed: json.loads(
        (tmp_path / "w" / f"train.lr={lr},seed={seed}" / "metrics.jsonl").read_text().splitlines()[-1]
    )["val_loss"]
    for row, lr in zip(result["table"], (0.001, 0.01), strict=True):
        found = [last(lr, 0), last(lr, 1)]
        assert row["val_loss"] == pytest.approx(sum(found) / 2)
        assert row["val_loss_std"] == pytest.approx(statistics.stdev(found))
    assert json.loads((tmp_path / "w" / "sweep.json").read_text()) == result
    assert "train.lr=0.01" in error
    code, again, error = flowjax(*command, "train.lr=1e-3,1e-2", "seed=0..1")
    assert again == result
    assert error.count("already finished") == 4
    _, _, error = flowjax(*command, "train.lr=1e-3,1e-2", "seed=0..1", "--only", "3")
    assert error.count("already finished") == 1
    (tmp_path / "w" / "train.lr=0.01,seed=1" / "config.json").unlink()
    code, failed, error = flowjax(*command, "train.lr=1e-3,1e-2", "seed=0..1")
    assert code == 1
    assert failed["table"][1]["runs"] == 1
    assert "has no config.json" in failed["failed"]["train.lr=0.01,seed=1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--grid is required"),
        (["--grid", "train.lr"], "'train.lr' is not KEY=VALUES"),
        (["--grid", "train.rate=1"], "unknown config key 'train.rate'; the keys of train are accumulate, batch_size"),
        (["--grid", "train.lr=fast"], "train.lr must be a number"),
        (["--grid", "seed=3..1"], "'3..1' is empty"),
        (["--grid", "seed=0..99999999"], "has 100,000,000 values, and at most 10,000 are possible"),
        (["--grid", "seed=0..999", "train.lr=1,2,3,4,5,6,7,8,9,10,11"], "--grid has 11,000 points, and at most 10,000"),
        (["--grid", "seed=4294967296,0"], "seed must be at most 4,294,967,295"),
        (["--grid", "seed=0", "seed=1"], "--grid has the key seed twice"),
        (["--grid", f"data.path={'x' * 300}"], "is too long for the name of a folder"),
        (
            ["--dry_run", "--grid", "seed=0..9", "path.schedule=vp,vp(3)(2)"],
            "seed=0,path.schedule=vp(3)(2): path.sched",
        ),
        (
            ["--dry_run", "--grid", "source.name=normal,digits(0)"],
            "source.name=digits(0): source.name 'digits(0)': a so",
        ),
        (["--grid", "seed=0,1,0"], "--grid has seed=0 twice"),
        (["--grid", "seed=0..1", "--only", "2"], "--only 2: the grid has points 0 to 1"),
    ],
)
def test_bad_grids_are_one_line(flowjax, tmp_path, arguments, message):
    code, _, error = flowjax("sweep", "--config", "moons", "--workdir", str(tmp_path), *arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_the_metrics_of_runs_are_tabulated_over_seeds(flowjax, tmp_path, monkeypatch):
    """Means and deviations of numbers that differ between seeds; what was evaluated before is not evaluated again."""
    from flowjax.inference import evaluation, figures

    monkeypatch.setattr(figures, "draw_all", lambda *a: None)
    calls = []

    def evaluate(run, dataset, **options):
        calls.append(run.config.seed)
        return {"kl": 0.1 + run.config.seed, "w2": 2.0, "mode_share_min": 0.1, "npe": float("nan")}

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    command = ["sweep", "--config", "moons", "--workdir", str(tmp_path), *SMALL, "--grid", "train.lr=1e-2", "seed=0..2"]
    code, result, error = flowjax(*command, "--metrics=kl,w2")
    assert code == 0, error
    [row] = result["table"]
    assert row["values"] == {"train.lr": 0.01}
    assert row["metrics"]["kl"] == {"mean": pytest.approx(1.1), "std": pytest.approx(1.0), "runs": 3}
    assert row["metrics"]["npe"] == {"mean": None, "std": None, "runs": 0}
    header, line = [line.split(",") for line in (tmp_path / "sweep.csv").read_text().splitlines()]
    assert dict(zip(header, line, strict=True))["w2_std"] == "0.0"
    table = (tmp_path / "sweep.md").read_text().splitlines()
    assert table[0] == "| train.lr | runs | loss | validation loss | kl | w2 |"
    assert table[2].endswith("| 1.1 ± 1.0 | 2 ± 0 |")
    assert "1.1 +- 1.0" in error
    assert len(calls) == 3
    _, again, _ = flowjax(*command, "--evaluate", "--collect")
    assert (again["table"], len(calls)) == (result["table"], 3)
    other = ["--evaluate", "--collect", "--steps=20", "--solver=rk4"]
    flowjax(*command, *other)
    assert len(calls) == 6, "other settings are another evaluation"
    flowjax(*command, *other)
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics=kl,fidd"], "--metrics: unknown metric 'fidd'; did you mean 'fid'?"),
        (["--num=100"], "--num has a meaning only together with --evaluate"),
        (["--evaluate", "--solver=ddim", "--steps=9"], "--solver: "),
    ],
)
def test_bad_requests_of_metrics_are_one_line(flowjax, tmp_path, arguments, message):
    grid = ["--grid", "seed=0..1"]
    code, _, error = flowjax("sweep", "--config", "moons", "--workdir", str(tmp_path), *arguments, *grid)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


def test_one_seed_has_no_deviation():
    from flowjax.cli.sweep_table import PointResult, lines, rows

    record = {"step": 5, "loss": 1.0, "val_loss": None}
    table = rows([PointResult({"train.lr": lr, "seed": 0}, record) for lr in (1, 2)])
    assert "Each point has one finished run" in lines(table)[-1]
    assert lines(table)[1].split() == ["train.lr=1", "1", "1", "-"]


def test_a_lost_loss_is_left_out_of_the_mean_as_a_lost_metric_is():
    from flowjax.cli.sweep_table import PointResult, lines, rows

    results = [
        PointResult({"seed": seed}, {"step": 5, "loss": loss, "val_loss": 2.0}, {"kl": loss})
        for seed, loss in enumerate((1.0, 3.0, None, float("nan")))
    ]
    [row] = rows(results)
    assert (row["loss"], row["loss_std"], row["loss_runs"], row["val_loss_runs"]) == (
        2.0,
        statistics.stdev([1, 3]),
        2,
        4,
    )
    assert row["metrics"]["kl"] == {"mean": row["loss"], "std": row["loss_std"], "runs": 2}
    assert lines([row])[1].count("2.0 +- 1.4 (2)") == 2
