"""The experiments that come with flowjax: their folders, files and states, and how one is run."""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from flowjax import plots
from flowjax.config_files import shipped_configs
from flowjax.data import DataError, open_dataset
from flowjax.errors import ConfigError, WeightsError, unknown
from flowjax.extras import require
from flowjax.files import written
from flowjax.metrics.inception import load_inception
from flowjax.reproduce.experiment import Experiment, Form
from flowjax.reproduce.results import Results, deviations, markdown_table, write_results
from flowjax.reproduce.study import Study
from flowjax.training.workdir import locked, package_versions
from flowjax.training.writers import say

__all__ = [
    "EXPERIMENT_FOLDERS",
    "expected_values",
    "form_of",
    "load_experiment",
    "missing",
    "page_with_table",
    "reproduce",
    "results_file",
    "shipped_experiments",
    "state_of",
]

_PACKAGE = Path(__file__).parent.parent
EXPERIMENT_FOLDERS = (_PACKAGE / "experiments", _PACKAGE.parent / "experiments")
"""Folders of the experiments: inside the package where it is installed, next to it in a checkout."""


def shipped_experiments() -> dict[str, Path]:
    """The folders of the experiments by name, such as `minibatch_ot` or `questions/memorisation`."""
    for top in EXPERIMENT_FOLDERS:
        if top.is_dir():
            folders = sorted(path.parent for path in top.rglob("experiment.py"))
            return {folder.relative_to(top).as_posix(): folder for folder in folders}
    return {}


def load_experiment(folder: Path) -> Experiment:
    """Imports `experiment.py` of a folder, and returns its `EXPERIMENT`.

    Raises:
        MissingPackage: if matplotlib, which experiments draw with, is not installed.
        ConfigError: if the file defines no experiment.
    """
    require("matplotlib", "plots")
    spec = importlib.util.spec_from_file_location(f"flowjax_experiment_{folder.name}", folder / "experiment.py")
    if spec is None or spec.loader is None:
        raise ConfigError(f"{folder} has no experiment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise ConfigError(f"{folder}/experiment.py defines no EXPERIMENT of type flowjax.reproduce.Experiment")
    return experiment


def form_of(experiment: Experiment, quick: bool) -> Form:
    """The quick or the full form of an experiment."""
    return experiment.quick if quick else experiment.full


def _form_name(quick: bool) -> str:
    return "quick" if quick else "full"


def results_file(quick: bool) -> str:
    """The name of the file with the results of a form."""
    return "quick.json" if quick else "results.json"


def expected_values(folder: Path, quick: bool) -> Mapping[str, Mapping[str, list[int | float]]]:
    """[value, tolerance] by setting and metric for a form, from `expected.json`; empty if there are none."""
    path = folder / "expected.json"
    return json.loads(path.read_text()).get(_form_name(quick), {}) if path.exists() else {}


def missing(form: Form) -> str | None:
    """What has to be prepared before a form can run, in one line, or None if everything is there."""
    try:
        for name in form.needs:
            if name == "inception":
                load_inception()
            else:
                open_dataset(name)
    except (DataError, WeightsError) as error:
        return str(error)
    return None


def state_of(folder: Path) -> str:
    """`done` if the folder has results of the full form, `quick only`, or `not yet run`."""
    if (folder / results_file(quick=False)).exists():
        return "done"
    return "quick only" if (folder / results_file(quick=True)).exists() else "not yet run"


def reproduce(name: str, quick: bool, out: Path, update: bool = False) -> tuple[Results, list[str]]:
    """Runs an experiment to its end, or continues it, and writes its results, figures and page.

    Args:
        name: of a shipped experiment.
        quick: whether to run the quick form.
        out: the folder for workdirs, kept measurements, `results.json` or `quick.json`, figures and `README.md`.
        update: also write the results, the figures and the table into the folder of the experiment in the checkout.

    Returns:
        The results, and one line for each value that differs from what is expected.

    Raises:
        ConfigError: if there is no such experiment, or `out` holds something else.
    """
    folders = shipped_experiments()
    if name not in folders:
        raise ConfigError(unknown(name, folders, "experiment"))
    folder = folders[name]
    experiment = load_experiment(folder)
    form = form_of(experiment, quick)
    if update and folder.is_relative_to(EXPERIMENT_FOLDERS[0]):
        raise ConfigError("--update writes into experiments/ of a checkout, and this flowjax is installed without one")
    if (what := missing(form)) is not None:
        raise ConfigError(f"{name}: {what}")
    if form.accelerator and jax.default_backend() == "cpu":
        say(f"reproduce: warning: {name} is meant for an accelerator ({form.cost}); --quick is the form for a CPU")
    page = (folder / "README.md").read_text()
    _markers(page, name, quick)  # before hours of work
    study = Study(out, quick, range(form.seeds))
    identity = _identity(folder)
    study.begin(identity)
    with locked(out):
        study.cut_unfinished_line()
        say(f"reproduce: {name}: {experiment.title} Expected cost: {form.cost}.")
        experiment.run(study)
        results = _collect(name, study, identity)
        figures = experiment.draw(study, results) if experiment.draw is not None else {}
        page = page_with_table(page, experiment, results)
        for target in (out, folder) if update else (out,):
            write_results(target / results_file(quick), results)
            for figure, drawn in figures.items():
                plots.save(drawn, target / f"{figure}{'_quick' if quick else ''}.png")
            with written(target / "README.md") as part:
                part.write_text(page)
    return results, deviations(results, expected_values(folder, quick))


def _identity(folder: Path) -> dict[str, Any]:
    """What has to be equal where measurements of several starts are put together."""
    digest = hashlib.sha256((folder / "experiment.py").read_bytes())
    for config in shipped_configs().values():
        digest.update(config.read_bytes())
    checksum = {"checksum of the experiment or of the configs": digest.hexdigest()}
    return checksum | {"machine": _machine()} | package_versions()


def _collect(name: str, study: Study, identity: Mapping[str, Any]) -> Results:
    measurements = study.measurements()
    if not measurements:
        raise ConfigError(f"the experiment {name} measured nothing")
    versions = {package: identity[package] for package in ("jax", "flax", "optax", "diffrax")}
    seconds = round(sum(m.seconds or 0.0 for m in measurements), 1)
    date = max(m.date for m in measurements)
    return Results(name, study.quick, identity["machine"], versions, date, seconds, measurements)


def _machine() -> str:
    if jax.default_backend() == "cpu":
        return f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPU cores"
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _markers(page: str, name: str, quick: bool) -> re.Pattern[str]:
    """The pattern of the markers of a form and of what is between them; raises ConfigError if the page has none."""
    form = _form_name(quick)
    pattern = re.compile(rf"(<!-- {form} results -->\n).*?(<!-- end -->)", flags=re.S)
    if not pattern.search(page):
        raise ConfigError(f"the README.md of {name} has no lines <!-- {form} results --> and <!-- end -->")
    return pattern


def page_with_table(page: str, experiment: Experiment, results: Results) -> str:
    """The page of an experiment with the table of these results between its markers.

    Raises:
        ConfigError: if the page has no such markers.
    """
    pattern = _markers(page, results.experiment, results.quick)
    table = markdown_table(results, experiment.columns, form_of(experiment, results.quick).published)
    return pattern.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", page)
