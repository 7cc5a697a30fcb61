"""The notebooks of `experiments/notebooks` are built from their sources. `scripts/notebooks.py --check` runs them."""

from pathlib import Path

import notebooks
import pytest

ROOT = Path(__file__).parent.parent

NAMES = [path.stem for path in sorted(notebooks.FOLDER.glob("[0-9]*.py"))]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_agrees_with_its_source(name):
    source, built = (notebooks.FOLDER / f"{name}.{ending}" for ending in ("py", "ipynb"))
    assert notebooks.stamped(source.read_text(), name) == source.read_text(), "run scripts/notebooks.py"
    assert notebooks.paired(notebooks.read(source), notebooks.read(built)), "run scripts/notebooks.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_links_to_colab_and_installs_from_the_repository(name):
    cells = notebooks.read(notebooks.FOLDER / f"{name}.ipynb").cells
    assert cells[0].source.startswith(notebooks.badge(name))
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert first.source == notebooks.install_cell()


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_was_run_from_the_top(name):
    """Every code cell has run in order, without an error, and the file is small enough for the repository."""
    path = notebooks.FOLDER / f"{name}.ipynb"
    code = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert path.stat().st_size < 300_000


def test_nothing_installs_another_package_of_the_same_name():
    for path in [*notebooks.FOLDER.iterdir(), ROOT / "docs" / "notebooks.md"]:
        assert "pip install flowjax" not in path.read_text()
    assert "flowjax-research[data,plots] @ git+https://github.com/" in notebooks.install_cell()


def test_the_documentation_lists_every_notebook():
    page = (ROOT / "docs" / "notebooks.md").read_text()
    for name in NAMES:
        assert notebooks.colab(name) in page


def test_a_changed_cell_is_noticed(tmp_path):
    name = NAMES[0]
    changed = tmp_path / f"{name}.py"
    changed.write_text((notebooks.FOLDER / f"{name}.py").read_text() + "\n# %%\nprint(1)\n")
    assert not notebooks.paired(notebooks.read(changed), notebooks.read(notebooks.FOLDER / f"{name}.ipynb"))


def test_an_unknown_name_is_one_line():
    with pytest.raises(SystemExit, match="no notebook 'missing': choose from "):
        notebooks.main(["--check", "missing"])
