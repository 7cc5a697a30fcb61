"""`flowjax configs NAME` and `flowjax train --help config.KEY`: every key has a meaning, and the page is up to date."""

import pytest
import write_keys

from flowjax.cli import key_help
from flowjax.config import MODEL_DEFAULTS, defaults
from flowjax.methods import METHODS

OUTSIDE = '''
from flax import nnx


class Net(nnx.Module):
    """A network.

    Args:
        width: width of
            the layer.
    """

    def __init__(self, shape, *, width: int = 8, mode: str | int = "a", rngs):
        pass
'''


@pytest.mark.parametrize("config", [*map(defaults, MODEL_DEFAULTS), *(defaults(method=name) for name in METHODS)])
def test_every_key_has_a_meaning_and_choices(config):
    found = key_help.key_help(config)
    assert {key for key, one in found.items() if not one.meaning.endswith(".") or not one.allowed} == set()


def test_names_have_their_arguments_in_brackets():
    names = key_help.chosen(defaults(), "path.schedule")["path.schedule"].choices
    assert {"cosine", "polynomial(n)", "vp(beta_min=0.1, beta_max=20.0)"} <= set(names)
    assert "sinkhorn(eps)" in key_help.chosen(defaults(), "coupling")["coupling.name"].choices


def choices_of(method, key):
    return key_help.chosen(defaults(method=method), key)[key].choices


def test_choices_are_those_of_the_method():
    assert choices_of("flow_matching", "method.loss") == ["squared", "pseudo_huber(c=0.00054)"]
    assert choices_of("gan", "method.loss") == ["relativistic", "non_saturating"]
    assert choices_of("score_distillation", "method.loss") == ["dmd", "sid"]
    assert choices_of("consistency", "method.solver")[:2] == ["euler", "rk4"]
    assert choices_of("consistency", "method.teacher") == "a string"
    for weighted in ("importance(even=0.1)", "uniform_log_snr(stratified=False)"):
        assert weighted in choices_of("flow_matching", "method.times")
        assert weighted not in choices_of("mean_flow", "method.times")


def test_the_page_of_the_documentation_is_up_to_date():
    assert write_keys.page() == write_keys.PAGE.read_text(), "run python scripts/write_keys.py"


def test_the_descriptions_of_all_configs_start_in_one_column(flowjax):
    _, line, error = flowjax("configs")
    assert {len(row) - len(line["configs"][row.split()[0]]) for row in error.splitlines()} == {
        max(map(len, line["configs"])) + 2
    }


def test_keys_of_a_config_on_the_command_line(flowjax, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    code, line, error = flowjax("configs", "gaussians8")
    assert code == 0
    assert line["config"] == "gaussians8"
    steps = line["keys"]["train.steps"]
    assert (steps["value"], steps["default"]) == (7000, 10_000)
    assert "(default 10000)" in error
    _, line, _ = flowjax("configs", "gaussians8", "config.path")
    assert set(line["keys"]) == {"path.name", "path.schedule", "path.shift", "path.noise"}
    _, line, _ = flowjax("configs", "gaussians8", "train.keep")
    assert set(line["keys"]) == {"train.keep_last", "train.keep_every", "train.keep_at"}
    assert "does not read path, coupling, prediction, model." in flowjax("configs", "realnvp_moons")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["realnvp_moons", "path"],
            "path has no meaning for method.name 'normalizing_flow'; it belongs to flow_matching",
        ),
        (["gaussians8", "train.stepz"], "the nearest valid one is 'train.steps'"),
        (["gaussian8"], "the nearest is 'gaussians8'"),
        (["gaussians8", "seed", "path"], "unexpected argument 'path'"),
    ],
)
def test_wrong_arguments_are_one_line(flowjax, arguments, message):
    code, _, error = flowjax("configs", *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


def test_help_of_a_key(flowjax):
    code, text, _ = flowjax("train", "--help", "config.path.noise", "--config.seed")
    assert code == 0
    assert text.startswith("path: ")
    assert "bridge(scale=1.0)" in text
    assert "train.steps" not in text
    assert "train.steps" in flowjax("train", "--config=moons", "--help", "config.train")[1]
    code, text, _ = flowjax("train", "--help", "config.method.teacher")
    assert text.startswith("with method.name mean_flow, shortcut, flow_map, consistency_trajectory:\nmethod: ")
    assert text.count("method.teacher") == 4  # once for each description, which several methods share
    code, _, error = flowjax("train", "--config=moons", "--help", "config.trian")
    assert (code, error.count("\n")) == (2, 1)


def test_keys_of_a_network_from_outside_have_the_meanings_of_its_docstring(flowjax, tmp_path):
    (tmp_path / "key_help_nets.py").write_text(OUTSIDE)
    config = "from flowjax.config import defaults\n\ndef get_config():\n    return defaults('key_help_nets:Net')\n"
    (tmp_path / "mine.py").write_text(config)
    code, line, error = flowjax("configs", tmp_path / "mine.py", "model")
    assert code == 0, error
    assert line["keys"]["model.width"]["meaning"] == "width of the layer."
    assert line["keys"]["model.mode"] == {
        "value": "a",
        "default": "a",
        "meaning": "",
        "choices": "string or whole number",
    }
    assert "its docstring does not describe it" in error
