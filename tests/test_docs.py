"""Every block of Python in the README and the documentation runs, and every command there has flags that exist."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "reference" not in p.parts)]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
TRAINING = ("docs/getting-started.md", "docs/howto/own-data.md")
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
    """All blocks of a page in one namespace, in a folder with a trained run in `runs/g8`."""
    code = blocks(page, "python")
    if not code:
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "g8").symlink_to(tiny_run)
    namespace: dict = {}
    for i, block in enumerate(code):
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
