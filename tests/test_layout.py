"""The public surface, and the floors of CONTRIBUTING.md: imports point down only."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import flowjax

pytestmark = pytest.mark.analytic

ROOT = Path(__file__).parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "flowjax").rglob("*.py"))
}
PUBLIC = [name for name in FILES if not any(part.startswith("_") for part in name.split("."))]

FLOORS = [
    ("cli",),
    ("reproduce",),
    ("interop", "notebook", "pages", "reflow", "rounds", "runs"),
    ("inference",),
    ("training",),
    ("build", "config", "config_files", "config_keys", "config_types", "names"),
    ("data", "metrics"),
    ("bits", "free_energy", "guidance", "likelihood", "methods", "oracles", "solvers"),
    ("conditional_flow", "couplings", "paths", "predictions", "reschedule", "schedules"),
]
"""The rooms of each floor, from the top. What is not here is on the ground floor."""

EXCEPTIONS = {("flowjax.methods.components", "flowjax.data.spec")}  # for a type checker only
"""(importing module, imported module), where an import points up, each with a reason beside it."""


def floor(module: str) -> int:
    room = module.split(".")[1] if "." in module else ""
    return next((len(FLOORS) - i for i, rooms in enumerate(FLOORS) if room in rooms), 0)


def imports(name: str) -> set[str]:
    """The modules of flowjax that a module imports, also inside of functions and for a type checker."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("flowjax.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "flowjax":
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & set(FILES)) or {str(node.module)}
    return found


def test_imports_point_down_only():
    for name in FILES:
        for other in imports(name):
            if name not in ("flowjax", "flowjax.__main__") and (name, other) not in EXCEPTIONS:
                assert floor(other) <= floor(name), f"{name} imports {other}, which is on a higher floor"


def test_the_floors_are_those_of_contributing():
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M)
    plain = lambda room: re.sub(r"/$|\.py$", "", room)
    shown = {int(number): set(map(plain, re.findall(r"`([^`]+)`", rooms))) for number, rooms in rows}
    rooms = {name.split(".")[1] for name in PUBLIC if "." in name}
    assert set().union(*shown.values()) == rooms
    assert shown == {k: {room for room in rooms if floor(f"flowjax.{room}") == k} for k in range(len(FLOORS) + 1)}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_lists_what_it_exports(name):
    module = importlib.import_module(name)
    assert "__all__" in vars(module), f"{name} has no __all__"
    assert len(set(module.__all__)) == len(module.__all__)
    for exported in module.__all__:
        assert hasattr(module, exported), f"{name} exports {exported}, which it does not have"
        assert not exported.startswith("_")


def test_the_readme_lists_the_public_modules():
    text = re.search(r"all public modules:\n(`abilities`.*?)\n\n", (ROOT / "README.md").read_text(), flags=re.S)
    assert text is not None
    listed = re.findall(r"`(\w+)`", text[1])
    assert sorted(listed) == sorted(name for name in flowjax.__all__ if name not in flowjax._OBJECTS)
