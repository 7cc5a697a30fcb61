"""Running, continuing and listing experiments, and the pages of those that come with flowjax."""

import json

import pytest

from flowjax.cli.main import main
from flowjax.errors import ConfigError
from flowjax.reproduce import shipped
from flowjax.reproduce.results import deviations, read_results

TOY = """
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from flowjax.reproduce import Experiment, Form


def run(study):
    for seed in study.seeds:
        study.measure("a", lambda seed=seed: count(study, seed), seed)


def count(study, seed):
    calls = study.folder / "calls"
    calls.write_text((calls.read_text() if calls.exists() else "") + str(seed))
    if seed == 1 and not (study.folder.parent / "allowed").exists():
        raise RuntimeError("stopped")
    return {"value": np.float32(seed + 0.5), "curve": np.arange(2)}


def draw(study, results):
    study.arrays("x", lambda: {"x": np.zeros(3)})
    return {"figure": Figure()}


EXPERIMENT = Experiment(
    "A toy.", "", Form("a day", seeds=2), Form("a second"), run, {"value": "value"}, draw
)
"""
PAGE = "# Toy\n\n<!-- full results -->\n<!-- end -->\nbetween\n<!-- quick results -->\nold\n<!-- end -->\n"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    folder = tmp_path / "experiments" / "toys" / "toy"
    folder.mkdir(parents=True)
    (folder / "experiment.py").write_text(TOY)
    (folder / "README.md").write_text(PAGE)
    (folder / "expected.json").write_text(
        '{"full": {"a": {"value": [1.0, 0.1]}}, "quick": {"a": {"value": [2.0, 1.0]}}}'
    )
    monkeypatch.setattr(shipped, "EXPERIMENT_FOLDERS", (tmp_path / "nowhere", tmp_path / "experiments"))
    monkeypatch.chdir(tmp_path)
    return folder


def test_an_experiment_that_was_stopped_goes_on_with_what_is_missing(toy, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["reproduce", "toys/toy", "--out", str(out)]) == 1
    (tmp_path / "allowed").touch()
    assert main(["reproduce", "toys/toy", "--out", str(out)]) == 0
    assert (out / "calls").read_text() == "011"  # the first seed was measured once
    result = json.loads(capsys.readouterr().out)
    assert result["agrees"]
    assert result["results"] == {"a": {"value": 1.0}}
    assert {"results.json", "figure.png", "README.md"} <= {path.name for path in out.iterdir()}
    page = (out / "README.md").read_text()
    assert "| a | 1.00 ± 0.71 | 2 |" in page
    assert "between\n<!-- quick results -->\nold" in page
    assert read_results(out / "results.json").series("a", "curve") == [0, 1]
    with (out / "measurements.jsonl").open("a") as file:
        file.write('{"setting": "b"')  # a process that was killed while it wrote
    results, _ = shipped.reproduce("toys/toy", False, out)
    assert results.settings == ["a"]
    assert results.seeds("a") == [0, 1]
    (toy / "experiment.py").write_text(TOY + "\n")
    with pytest.raises(ConfigError, match="made with another checksum of the experiment"):
        shipped.reproduce("toys/toy", False, out)


def test_a_folder_with_other_files_is_refused(toy, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        shipped.reproduce("toys/toy", False, tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"


def test_the_state_is_that_of_the_results_in_the_folder(toy, capsys):
    states = []
    for quick in (True, False):
        assert main(["reproduce"]) == 0
        states.append(json.loads(capsys.readouterr().out)["experiments"]["toys/toy"]["state"])
        folder = shipped.EXPERIMENT_FOLDERS[1].parent / f"out-{quick}"
        (folder.parent / "allowed").touch()
        _, lines = shipped.reproduce("toys/toy", quick, folder, update=True)
        assert lines == (["a: value is 0.5; expected 2 ± 1"] if quick else [])
    assert [*states, shipped.state_of(toy)] == ["not yet run", "quick only", "done"]
    assert (toy / "figure_quick.png").exists()
    assert (toy / "figure.png").exists()


def test_an_unknown_name_names_the_nearest(toy, capsys):
    assert main(["reproduce", "toys/tay"]) == 2
    assert "did you mean 'toys/toy'" in capsys.readouterr().err
    assert main(["reproduce", "--quick"]) == 2
    assert "name an experiment" in capsys.readouterr().err


NAMES = list(shipped.shipped_experiments())


@pytest.mark.parametrize("name", NAMES)
def test_the_page_and_the_expected_values_agree_with_the_results(name):
    folder = shipped.shipped_experiments()[name]
    experiment = shipped.load_experiment(folder)
    page = (folder / "README.md").read_text()
    assert f"flowjax reproduce {name}" in page
    for quick in (False, True):
        assert f"<!-- {'quick' if quick else 'full'} results -->" in page
        path = folder / shipped.results_file(quick)
        expected = shipped.expected_values(folder, quick)
        if path.exists():
            results = read_results(path)
            assert shipped.page_with_table(page, experiment, results) == page, "run `flowjax reproduce --update`"
            assert expected, "expected.json has no values for this form"
            assert deviations(results, expected) == []
            seeds = shipped.form_of(experiment, quick).seeds
            assert max(len(results.seeds(setting)) for setting in results.settings) == seeds
