"""Builds the notebooks of `experiments/notebooks` from their sources, or checks that they run.

    python scripts/notebooks.py                  # build all: execute NAME.py, and write NAME.ipynb with outputs
    python scripts/notebooks.py 02               # build those whose names start with 02
    python scripts/notebooks.py --check 02 05    # run two and write nothing; exit code 1 if one of them fails
    python scripts/notebooks.py --text           # write the address and the text, not the code, and run nothing

A notebook is written as NAME.py in the percent format of jupytext. Its link to Colab and its first code cell, which
installs flowjax where it is missing, are written by this script from `REPOSITORY`, the only place with the address;
so are the links in `docs/notebooks.md`.
Install `pip install -e '.[notebooks]'` first.
"""

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "REPOSITORY", "badge", "colab", "install_cell", "main", "paired", "read", "stamped"]

REPOSITORY = "OWNER/flowjax"
"""The repository on GitHub. OWNER is a placeholder until the repository is published."""

_ROOT = Path(__file__).parent.parent
FOLDER = _ROOT / "experiments" / "notebooks"
"""The folder of the notebooks."""
_PAGE = _ROOT / "docs" / "notebooks.md"
_TEMPORARY = re.compile(rf"{re.escape(tempfile.gettempdir())}/flowjax-\w+")
"""A temporary folder: the workdir of a run or the folder of a notebook. Its name differs in each execution."""
_SECONDS = 600
"""Time limit of one cell."""
_COLOURS = 128
"""Colours of a figure, whose file is then about a third as large."""


def colab(name: str) -> str:
    """The address at which Colab opens a notebook."""
    return f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/experiments/notebooks/{name}.ipynb"


def badge(name: str) -> str:
    """The first line of a notebook: its link to Colab."""
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab(name)})"


def install_cell() -> str:
    """The first code cell of a notebook, which installs flowjax from the repository where it is missing."""
    return f"""import importlib.util
import subprocess
import sys

if importlib.util.find_spec("flowjax") is None:  # the package called flowjax on PyPI is a different library
    source = "flowjax-research[data,plots] @ git+https://github.com/{REPOSITORY}"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)"""


def stamped(text: str, name: str) -> str:
    """The source of a notebook with the current link to Colab and install cell.

    Raises:
        ValueError: if the source lacks the line of the link, or a first code cell.
    """
    text, links = re.subn(r"^# \[!\[Open in Colab\].*$", lambda _: f"# {badge(name)}", text, count=1, flags=re.M)
    cell = f"# %%\n{install_cell()}\n\n"
    text, cells = re.subn(r"^# %%\n.*?(?=^# %%)", lambda _: cell, text, count=1, flags=re.M | re.S)
    if not (links and cells):
        raise ValueError(
            f"{name}.py needs a line '# [![Open in Colab]' and a code cell that is followed by another one"
        )
    return text


def read(path: Path) -> Any:
    """The notebook in a .py or .ipynb file (an `nbformat.NotebookNode`)."""
    import jupytext

    return jupytext.read(path, fmt="py:percent" if path.suffix == ".py" else "ipynb")


def paired(source: Any, built: Any) -> bool:
    """Whether two notebooks have the same cells, apart from their outputs."""
    cells = lambda notebook: [(cell.cell_type, cell.source) for cell in notebook.cells]
    return cells(source) == cells(built)


def _execute(notebook: Any) -> None:
    """Runs all cells in a new kernel and a new folder.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises an exception or exceeds the time limit.
    """
    from nbclient import NotebookClient

    # figures are shown by the backend of the kernel, and the repository is found from the other folder
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="flowjax-") as folder:
        client = NotebookClient(
            notebook,
            timeout=_SECONDS,
            kernel_name="python3",
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment)


def _strip(notebook: Any) -> None:
    """Removes what differs from one execution to the next without a change of the source, and compacts the outputs."""
    notebook.metadata = {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", {}
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
            output.pop("transient", None)
            if output.output_type == "stream":  # each rewriting of a progress bar follows a carriage return
                lines = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in output.text.split("\n"))
                output.text = _TEMPORARY.sub("flowjax-run", "\n".join(lines))
            for kind in {"text/plain", "text/html"} & set(output.get("data", {})):
                output.data[kind] = _TEMPORARY.sub("flowjax-run", output.data[kind])
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _fewer_colours(output.data["image/png"])
                output.data.pop("text/plain", None)


def _fewer_colours(png: str) -> str:
    """A figure (base64) with a palette."""
    from PIL import Image

    image, out = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def _write_text(source: Path) -> None:
    """Writes the address into a source and, if its other code is that of the notebook, all text into the notebook."""
    import nbformat

    source.write_text(stamped(source.read_text(), source.stem))
    if (path := source.with_suffix(".ipynb")).exists():
        built, cells = read(path), read(source).cells
        code = lambda cells: [(cell.cell_type, cell.cell_type == "code" and cell.source) for cell in cells[2:]]
        if code(built.cells) == code(cells):
            for old, new in zip(built.cells, cells, strict=True):
                old.source = new.source
            nbformat.write(built, path)
    links = r"https://colab\.research\.google\.com/github/\S+?/(\w+)\.ipynb"
    _PAGE.write_text(re.sub(links, lambda link: colab(link[1]), _PAGE.read_text()))


def _build(source: Path) -> None:
    import nbformat

    _write_text(source)
    notebook = read(source)
    _execute(notebook)
    _strip(notebook)
    nbformat.write(notebook, source.with_suffix(".ipynb"))


def _chosen(names: list[str]) -> list[Path]:
    """The sources whose names start with one of the given names; all of them for no names."""
    sources = sorted(FOLDER.glob("[0-9]*.py"))
    starts = [Path(name).stem for name in names]
    for start in starts:
        if not any(source.stem.startswith(start) for source in sources):
            raise SystemExit(f"no notebook {start!r}: choose from {', '.join(source.stem for source in sources)}")
    return [source for source in sources if not starts or any(source.stem.startswith(start) for start in starts)]


def main(argv: list[str] | None = None) -> int:
    """Runs the command; the exit code is 1 if a notebook failed."""
    parser = argparse.ArgumentParser(description="Builds the notebooks, or checks that they run.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a notebook, or the start of its name; all by default")
    parser.add_argument("--check", action="store_true", help="run the notebooks without writing anything")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no notebook after this time")
    parser.add_argument("--text", action="store_true", help="write the address and the text, and run nothing")
    arguments = parser.parse_args(argv)
    sources = _chosen(arguments.names)
    if arguments.text:
        for source in sources:
            _write_text(source)
        return 0
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    failed, began = 0, time.perf_counter()
    for source in sources:
        if time.perf_counter() - began > 60 * arguments.minutes:
            print(f"{source.stem}: not run, as {arguments.minutes:g} minutes are over", file=sys.stderr)
            continue
        start, outcome = time.perf_counter(), "runs" if arguments.check else "built"
        try:
            if arguments.check:
                _execute(read(source))
            else:
                _build(source)
        except (CellExecutionError, CellTimeoutError) as error:
            failed, outcome = failed + 1, "FAILED"
            print(error, file=sys.stderr)
        print(f"{source.stem}: {outcome} ({time.perf_counter() - start:.0f} s)", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
