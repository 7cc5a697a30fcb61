"""The types that a type checker sees in a config are those of its defaults, and a misspelled key is an error."""

import json
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from flowjax import config_types
from flowjax.config import defaults, flatten

PLAIN = {tuple[str, ...]: tuple, tuple[int, ...]: tuple, tuple[float, ...]: tuple}
PYRIGHT = Path(sys.executable).with_name("pyright")

MISSPELLED = """
from flowjax.config import defaults

config = defaults()
config.train.steps = 100
config.model.width = 32
assert config.train.stepz
reveal_type(config.train.log_every)
"""


def test_the_types_are_those_of_the_defaults():
    full = defaults()
    sections = typing.get_type_hints(config_types.Config)
    assert set(sections) == set(full.to_dict())
    for name, kind in sections.items():
        if issubclass(kind, config_types.OpenKeys):
            continue
        if not issubclass(kind, config_types.Section):
            assert type(full[name]) is kind
            continue
        hints = typing.get_type_hints(kind)
        assert {key: PLAIN.get(hint, hint) for key, hint in hints.items()} == {
            key: type(value) for key, value in full[name].items()
        }
    assert "train.steps" in flatten(full)


@pytest.mark.slow
@pytest.mark.skipif(not PYRIGHT.exists() or shutil.which("node") is None, reason="needs pyright, and node for it")
def test_pyright_finds_a_misspelled_key(tmp_path):
    (tmp_path / "mine.py").write_text(MISSPELLED)
    root = Path(__file__).parent.parent
    settings = {"include": [str(tmp_path)], "extraPaths": [str(root)], "pythonVersion": "3.11"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [PYRIGHT, "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    found = json.loads(output)["generalDiagnostics"]
    errors = [one for one in found if one["severity"] == "error"]
    assert len(errors) == 1
    assert 'Cannot access attribute "stepz" for class "TrainKeys"' in errors[0]["message"]
    assert [one["message"] for one in found if one["severity"] == "information"] == [
        'Type of "config.train.log_every" is "int"'
    ]
