"""What importing flowjax brings with it, and the errors about optional packages that are not installed."""

import subprocess
import sys

import numpy as np
import pytest

from flowjax import extras, plots
from flowjax.batch import Batch
from flowjax.data.dataset import ArrayRows
from flowjax.data.stream import Stream

HEAVY = ["PIL", "flax", "grain", "matplotlib", "orbax", "scipy", "sklearn", "tensorflow_datasets"]


@pytest.mark.analytic
def test_the_algebra_imports_no_heavy_package():
    code = "import flowjax.paths, flowjax.solvers, flowjax.predictions, flowjax.couplings, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "package", "arguments"),
    [
        ("sklearn", "scikit-learn", ["--config=digits"]),
        ("tensorflow_datasets", "tensorflow-datasets", ["--config=fashion_mnist"]),
        ("PIL", "pillow", ["--config=fashion_mnist", "--config.data.name=folder(8)", "--config.data.path=."]),
    ],
)
def test_a_command_names_the_missing_package_and_its_extra(flowjax, tmp_path, monkeypatch, module, package, arguments):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    code, _, err = flowjax("train", *arguments, f"--workdir={tmp_path}/run")
    assert (code, err) == (2, f"flowjax: train: {package} is not installed: pip install 'flowjax-research[data]'\n")
    assert not (tmp_path / "run").exists()


def test_streams_and_figures_name_their_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "flowjax.plots.notebook", raising=False)
    with pytest.raises(extras.MissingPackage, match=r"grain is not installed: .*\[data\]"):
        Stream(ArrayRows(Batch(np.zeros((4, 2), np.float32))), 0, 2)[0]
    with pytest.raises(extras.MissingPackage, match=r"matplotlib is not installed: .*\[plots\]"):
        plots.loss_curves(np.arange(3.0), {"training": np.ones(3)})
    with pytest.raises(extras.MissingPackage, match=r"matplotlib is not installed: .*\[plots\]"):
        plots.image_grid(np.zeros((4, 8, 8, 1), np.uint8))


def test_the_package_that_is_missing_is_named_if_an_optional_one_needs_it(monkeypatch, tmp_path):
    (tmp_path / "incomplete.py").write_text("import its_own_requirement")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(extras.MissingPackage, match=r"^its_own_requirement is not installed: .*\[data\]"):
        extras.require("incomplete", "data")
