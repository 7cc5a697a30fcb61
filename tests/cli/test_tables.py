"""`flowjax train` and `flowjax sample` on a table, from a CSV file to a CSV file."""

import csv

import numpy as np
import pytest

pytest.importorskip("pyarrow")

TINY = ["--config.train.steps=20", "--config.train.batch_size=16", "--config.model.width=8", "--config.model.depth=1"]


def test_from_a_table_to_samples_in_a_table(flowjax, tmp_path):
    rng = np.random.default_rng(0)
    kinds = rng.choice(["x", "y"], 100, p=[0.8, 0.2])
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["size", "count", "kind", "group"]])
        csv.writer(file).writerows(zip(rng.normal(size=100), rng.poisson(3, 100), kinds, kinds[::-1], strict=True))
    mine = ["--config=moons", "--config.data.name=", f"--config.data.path={tmp_path}/a.csv", "--config.data.cond=group"]
    code, _, err = flowjax("train", *mine, *TINY, f"--workdir={tmp_path}/run")
    assert code == 0, err
    np.savez(tmp_path / "cond.npz", group=np.array(["y"]))
    draw = (
        "sample",
        f"--workdir={tmp_path}/run",
        "--num=8",
        "--solver=euler",
        "--steps=2",
        f"--cond={tmp_path}/cond.npz",
    )
    for name in ("s.csv", "s.npz"):
        code, _, err = flowjax(*draw, f"--out={tmp_path / name}")
        assert code == 0, err
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (samples,) = np.load(tmp_path / "s.npz")["samples"]  # one observation
    assert [row["group"] for row in rows] == ["y"] * 8
    assert [int(row["count"]) for row in rows] == samples[:, 1].tolist()
    assert [row["kind"] for row in rows] == [("x", "y")[int(k)] for k in samples[:, 2]]
    np.testing.assert_array_equal(np.float32([row["size"] for row in rows]), samples[:, 0])


def test_other_files_and_other_runs_are_refused(flowjax, tiny_run, tmp_path):
    for name, message in (
        ("a.txt", "--out must end in .npz, or for a run on a table in .csv, .tsv, .parquet, not 'a.txt'"),
        (
            "a.csv",
            "--out a.csv: only samples of a table can be written as one, and the data of this run are gaussians8",
        ),
    ):
        code, _, err = flowjax("sample", f"--workdir={tiny_run}", "--num=4", f"--out={tmp_path / name}")
        assert (code, message in err) == (2, True), err
