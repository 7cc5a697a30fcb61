"""Of the README and the documentation, the Python runs, the flags of commands exist, and the links have targets."""

import ast
import importlib.util
import json
import re
import shlex
import urllib.parse
from pathlib import Path

import pytest

from flowjax.reproduce.results import read_results

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "reference" not in p.parts)]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
TRAINING = (
    "docs/coming-from-sbi.md",
    "docs/getting-started.md",
    "docs/concepts/conditions.md",
    "docs/howto/own-data.md",
    "docs/howto/forecasting.md",
    "docs/howto/inference.md",
)
"""Pages whose code trains runs."""


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a language on a page, without their indentation (in lists and tabs)."""
    found = re.finditer(rf"^( *)```{language}\n(.*?)^\1```", (ROOT / page).read_text(), flags=re.S | re.M)
    return [re.sub(rf"^{match[1]}", "", match[2], flags=re.M) for match in found]


def commands(page: str) -> list[list[str]]:
    """The calls of `flowjax` in the blocks of commands on a page."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    text = text.replace(".venv/bin/", "")
    calls = [part for line in text.splitlines() for part in re.split(r"&&|;|\|", line.split("  #")[0])]
    return [shlex.split(call)[1:] for call in calls if call.strip().startswith("flowjax ")]


@pytest.mark.parametrize("page", [pytest.param(n, marks=pytest.mark.slow) if n in TRAINING else n for n in NAMES])
@pytest.mark.usefixtures("as_users_call")
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, tiny_run):
    """All blocks of a page in one namespace, in a folder with a trained run in `runs/g8`.

    A block whose first line is a comment with the name of a file, such as `# spring.py`, is also written to that file.
    """
    code = blocks(page, "python")
    if not code:
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "g8").symlink_to(tiny_run)
    namespace: dict = {}
    for i, block in enumerate(code):
        if file := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / file[1]).write_text(block)
        exec(compile(block, f"{page}, block {i + 1}", "exec"), namespace)


@pytest.mark.parametrize("page", NAMES)
def test_the_flags_of_a_page_exist(page, flowjax):
    for command, *arguments in commands(page):
        code, text, _ = flowjax(command, "--help")
        assert code == 0
        flags = {a.split("=")[0].lstrip("-") for a in arguments if a.startswith("--")}
        unknown = {flag for flag in flags if not flag.startswith("config.") and f"--{flag}" not in str(text)}
        unknown = {flag for flag in unknown if f"--[no]{flag.removeprefix('no')}" not in str(text)}
        assert not unknown, f"flowjax {command}: {unknown}"


TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
FOLDERS = r"(?:configs|docs|experiments|flowjax|scripts|tests)/"


def without_code(text: str) -> str:
    """Markdown without its blocks of code."""
    return re.sub(r"^( *)(```+).*?^\1\2", "", text, flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, and those that it sets itself."""
    text = without_code(page.read_text())
    headings = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", h) for h in re.findall(r"^#+ (.*)$", text, flags=re.M)]
    slugs = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}
    return slugs | set(re.findall(r'\bid="([^"]+)"|\{ *#([\w-]+)', text))


def links(page: Path) -> list[str]:
    """The targets of the links and images of a page, in Markdown and HTML."""
    text = re.sub(r"`[^`\n]*`", "", without_code(page.read_text()))
    found = re.findall(r"\]\(([^)\s]*)[^)]*\)|\b(?:href|src)=\"([^\"]*)\"|<(https?:[^>]*)>", text)
    return [next(filter(None, groups), "") for groups in found]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page):
    """Of links to other hosts only the form is checked; mkdocs checks the anchors of the reference."""
    not_yet_run = re.search(r"<!-- full results -->\s*<!-- end -->", page.read_text())
    for link in links(page):
        parts = urllib.parse.urlsplit(link)
        if not_yet_run and re.fullmatch(r"(?!\w*_quick\.)\w+\.png", link):
            continue  # a figure of the full form, which `flowjax reproduce --update` will write
        if parts.scheme:
            assert parts.scheme in ("http", "https", "mailto"), link
            assert parts.scheme == "mailto" or re.fullmatch(r"[\w.-]+\.\w+", parts.netloc), link
            continue
        target = page if not parts.path else page.parent / parts.path
        assert target.exists(), f"{link}: no such file"
        assert target.resolve().is_relative_to(ROOT), f"{link} is outside of the repository"
        if page.is_relative_to(ROOT / "docs"):
            figure = re.fullmatch(r"experiments/(\w+/)+\w+\.png", str(target.resolve().relative_to(ROOT)))
            assert figure or target.resolve().is_relative_to(ROOT / "docs"), f"{link} is not a part of the site"
        if parts.fragment and "reference" not in target.parts:
            assert parts.fragment in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", [t for t in TEXTS if t.name != "CHANGELOG.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_are_named_exist(page):
    """Paths from the root of the repository in `code` or commands."""
    named = re.findall(rf"(?<=[`\s]){FOLDERS}[\w./-]*\w(?=[`\s/])", page.read_text())
    missing = [name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()]
    assert not missing


@pytest.mark.parametrize("name", ["minibatch_ot", "gaussians8"])
def test_the_figures_of_the_readme_are_those_of_the_experiments(name):
    """Each number is a mean, a smallest or a largest value of one setting and metric, rounded as it is shown."""
    results = read_results(ROOT / "experiments" / name / "results.json")
    metrics = {metric for m in results.measurements for metric in m.metrics}
    values = [v for s in results.settings for m in metrics if (v := results.values(s, m))]
    measured = [one for v in values for one in (min(v), max(v), sum(v) / len(v))]
    (cell,) = re.findall(rf"\(experiments/{name}\).*\| ([^|]*) \|$", (ROOT / "README.md").read_text(), flags=re.M)
    shown = re.findall(r"\d+\.\d+", cell)
    assert len(shown) == 2
    for number in shown:
        assert any(f"{value:.{len(number.partition('.')[2])}f}" == number for value in measured), number
    (seeds,) = re.findall(r"\((\d+) seeds\)", cell)
    assert max(len(results.seeds(setting)) for setting in results.settings) == int(seeds)


def messages() -> list[str]:
    """The strings in the source of flowjax, with `…` in place of each value in an f-string."""
    found = []
    for file in (ROOT / "flowjax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_errors_of_the_page_on_troubleshooting_are_those_of_the_source():
    page = (ROOT / "docs" / "howto" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^- `([^`]+)`<br>$", page, flags=re.M)
    assert len(quoted) > 40
    source = messages()
    for quote in quoted:
        pattern = re.compile(re.escape(quote.strip("…")).replace("…", ".*"), flags=re.S)
        assert any(pattern.search(text) for text in source), quote


@pytest.mark.slow
def test_the_site_has_an_index_for_search_and_one_for_language_models(tmp_path, monkeypatch):
    """Both have every page of the navigation, which the hook `docs/llms.py` and mkdocs read from mkdocs.yml."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("needs the extra docs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    pages = re.findall(r"(\S+)\.md$", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2], flags=re.M)
    index = json.loads((tmp_path / "search" / "search_index.json").read_text())["docs"]
    assert {f"{page}.html" for page in pages} <= {entry["location"].partition("#")[0] for entry in index}
    listed = re.findall(r"^- \[[^]]+\]\(([^)]+)\): \S", (tmp_path / "llms.txt").read_text(), flags=re.M)
    assert {name.partition(".")[0] for name in listed} == set(pages)
    assert all((tmp_path / name).is_file() for name in listed)
    assert "--8<--" not in (tmp_path / "howto" / "own-parts.md").read_text()
