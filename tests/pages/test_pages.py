"""The report of a run and the comparison of runs: one HTML file each, escaped, without other resources."""

import importlib
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from flowjax import pages
from flowjax.inference.kept_metrics import keep_metrics
from flowjax.inference.run import at_step, load
from flowjax.pages.markup import Markup, tag

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>alert('x')</script>&\"<img src=http://example.com/a.png>"


class _Page(HTMLParser):
    """Collects the elements of a page, and everything that it refers to."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.references, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.references += [v for k, v in attributes if k in ("src", "href", "srcset", "action", "data", "background")]

    def handle_data(self, data):
        self.text += data


def check(html):
    """Checks that a page has no resources outside, and no scripts. Returns the page."""
    page = _Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert "@import" not in html
    assert "url(" not in html
    return page


@pytest.fixture
def other_run(tiny_run, tmp_path):
    """A copy of the tiny run without checkpoints, with another learning rate and a hostile path in its config."""
    folder = tmp_path / "other" / "run"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("checkpoints", "metrics"))
    record = json.loads((folder / "config.json").read_text())
    record["config"]["train"]["lr"] = 0.5
    record["config"]["data"]["path"] = HOSTILE
    record["git_commit"] = HOSTILE
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def test_text_is_escaped_and_markup_is_not():
    made = tag("p", "a < b", tag("b", "&"), title='"x"')
    assert made == '<p title="&quot;x&quot;">a &lt; b<b>&amp;</b></p>'
    assert isinstance(made, Markup)


def test_the_report_of_a_run(tiny_run, tmp_path):
    """Samples of each checkpoint are those of the run opened at that step, whose parameters differ."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    run = load(folder)
    keep_metrics(run, {"ema": False, "solver": "rk4"}, {"kl": 0.1234, "kl_stderr": 0.0056})
    made = pages.report(folder)
    page = check(made.html)
    assert made.missing == {}
    assert made.figures == ("samples", "trajectories", "density", "likelihood")
    assert f"with {sum(a.size for a in jax.tree.leaves(run.params)):,} parameters on the data gaussians8" in page.text
    for text in (
        "120 steps of 64 samples",
        "0.1234 ± 0.0056",
        "step 120, --no-ema, --solver rk4",
        "model.width",
        "step 80",
        "jax",
    ):
        assert text in page.text, text
    early, again = load(folder, checkpoint=40), at_step(run, 40)
    assert again.identity == run.identity  # compiled programs are used again
    jax.tree.map(np.testing.assert_array_equal, again.params, early.params)


def test_a_report_without_drawing_needs_no_checkpoint_and_escapes_the_config(other_run):
    made = pages.report(other_run, draw=False)
    page = check(made.html)
    assert HOSTILE in page.text
    assert made.figures == ("samples", "trajectories", "density")
    assert "Samples over training" not in page.text


def test_a_figure_that_fails_is_a_note(tiny_run, monkeypatch):
    from flowjax.inference import figures

    def fail(inputs, name):
        raise ValueError("no <memory>")

    monkeypatch.setattr(figures, "draw", fail)
    made = pages.report(tiny_run)
    assert "likelihood" in made.missing
    assert "The figure likelihood could not be drawn: no <memory>" in check(made.html).text


def test_a_checkpoint_that_cannot_be_drawn_is_a_note(tiny_run, monkeypatch):
    """The samples of the checkpoint that is open already are not drawn from another restored copy."""
    from flowjax.inference import figures

    drawn = []

    def draw(inputs, name):
        drawn.append(inputs.run.step)
        if inputs.run.step == 40:
            raise ValueError("no memory")
        return Figure()

    monkeypatch.setattr(figures, "draw", draw)
    module = importlib.import_module("flowjax.pages.report")  # `pages.report` is the function
    monkeypatch.setattr(module, "at_step", lambda run, step: drawn.append(f"open {step}") or at_step(run, step))
    made = pages.report(tiny_run)
    assert "The figure samples of step 40 could not be drawn: no memory" in check(made.html).text
    assert "open 40" in drawn
    assert "open 120" not in drawn


def test_a_comparison(tiny_run, other_run):
    made = pages.compare([tiny_run, other_run])
    page = check(made.html)
    assert made.runs == [f"{tiny_run.parent.name}/run", "other/run"]
    path = json.loads((tiny_run / "config.json").read_text())["config"]["data"]["path"]
    assert made.differences == {"train.lr": [0.004, 0.5], "data.path": [path, HOSTILE]}
    last = json.loads((tiny_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert made.last["other/run"]["loss"] == last["loss"]
    assert HOSTILE in page.text
    assert "The runs differ in data.path, on which the loss depends" in page.text
    assert page.tags.count("img") >= 4 + 2
    with pytest.raises(ValueError, match="at least two different workdirs"):
        pages.compare([tiny_run, tiny_run])


def test_the_commands(flowjax, tiny_run, other_run, tmp_path):
    out = tmp_path / "a.html"
    code, line, error = flowjax("report", f"--workdir={tiny_run}", f"--out={out}", "--no-draw")
    assert code == 0, error
    assert line["figures"] == ["samples", "trajectories", "density"]
    check(out.read_text())
    code, line, error = flowjax("compare", tiny_run, other_run, "--out", out)
    assert code == 0, error
    assert line["differences"]["train.lr"] == [0.004, 0.5]
    assert "train.lr: 0.004, 0.5" in error
    check(out.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "--workdir is required"),
        (["report", "--workdir=RUN", "--out=a.pdf"], "--out must end in .html, not 'a.pdf'"),
        (["report", "--workdir=RUN", "--out=/dev/null/a.html", "--no-draw"], "cannot write /dev/null/a.html"),
        (
            ["report", "--workdir=RUN", "--no-draw", "--checkpoint=40"],
            "--checkpoint and --no-draw cannot be used together",
        ),
        (["compare", "RUN"], "at least two different workdirs"),
        (["compare", "-out", "nowhere", "RUN", "RUN"], "--out must end in .html, not 'nowhere'"),
        (["compare", "RUN", "nowhere"], "nowhere is not the workdir of a run: there is no such folder"),
    ],
)
def test_wrong_arguments_are_one_line(flowjax, tiny_run, arguments, message):
    code, _, error = flowjax(*(argument.replace("RUN", str(tiny_run)) for argument in arguments))
    assert code != 0
    assert (message in error, error.count("\n")) == (True, 1)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")
def test_a_browser_shows_the_pages(tiny_run, other_run, tmp_path):
    """Headless Chromium loads the images, and draws more than a blank page at the width of a telephone."""
    from PIL import Image

    for name, html in (
        ("report", pages.report(other_run, draw=False).html),
        ("compare", pages.compare([tiny_run, other_run]).html),
    ):
        path, shot = tmp_path / f"{name}.html", tmp_path / f"{name}.png"
        path.write_text(html)
        dom = _chromium(tmp_path, "--dump-dom", str(path))
        assert "<h2>Curves</h2>" in dom
        _chromium(tmp_path, "--window-size=420,1800", f"--screenshot={shot}", str(path))
        with Image.open(shot) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[1] >= 400
        assert len(np.unique(pixels[800:].reshape(-1, 3), axis=0)) > 50  # figures, not only text


def _chromium(folder: Path, *arguments: str) -> str:
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    profile = ["--disable-background-networking", f"--user-data-dir={folder / 'profile'}"]
    command = [CHROMIUM, *quiet, *profile, *arguments[:-1], Path(arguments[-1]).as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
