"""The fields that a config names as conditions: how they are read, and what a network is built with."""

import dataclasses

import pytest

from flowjax.build import fields_of
from flowjax.cli.main import main
from flowjax.conditions import Field
from flowjax.config import changed, defaults
from flowjax.data import Affine, DataSpec
from flowjax.data.requests import FieldRequest, field_requests
from flowjax.errors import ConfigError

SPEC = DataSpec("images", (8, 8, 1), num_classes=3, levels=17)


def test_names_carry_arguments():
    cond = ("label(0.25)", "points(kind='set', dropout=0)", "obs")
    assert field_requests(cond) == (
        FieldRequest("label", 0.25),
        FieldRequest("points", 0, "set"),
        FieldRequest("obs"),
    )


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (("label", "label(dropout=0)"), "names 'label' twice"),
        (("label(dropout=2)",), "dropout must be in"),
        (("label(size=2)",), "no argument 'size'"),
        (("obs(kind='graph')",), "unknown kind 'graph': known are label, vector, image, sequence, set"),
        (("x_test",), "cannot be the name of a condition"),
        (("my obs",), "letters, digits and underscores"),
        (("a-b",), "letters, digits and underscores"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused_in_one_line(cond, message):
    with pytest.raises(ConfigError, match=message) as error:
        field_requests(cond)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [("label", "obs(kind='set', dropout=0)"), ("label, obs(kind='set', dropout=0)",)])
def test_several_names_in_one_element_are_separated(value):
    config = changed(defaults(), {"data.cond": value})
    assert config.data.cond == ("label", "obs(kind='set', dropout=0)")


def test_fields_of_a_network_are_those_named_and_the_augmentation():
    config = changed(defaults("adm"), {"data.cond": ("label",), "data.augment": "edm"})
    label, augment = fields_of(config, SPEC)
    assert label == Field("label", "label", num_classes=3, dropout=0.1)
    assert (augment.name, augment.kind, augment.null, augment.dropout) == ("augment", "vector", 0.0, 0.0)
    assert fields_of(changed(config, {"data.augment": "none", "data.cond": ()}), SPEC) == ()
    assert fields_of(changed(defaults(), {"data.cond": ("label(dropout=0.3)",)}), SPEC)[0].dropout == 0.3


def test_a_field_that_the_data_do_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"names 'obs' as a condition; .* data 'images' has 'label'"):
        fields_of(changed(defaults(), {"data.cond": ("obs",)}), SPEC)


def test_pairs_are_not_augmented():
    config = changed(defaults("adm"), {"data.pairs": "x0", "data.augment": "flip"})
    with pytest.raises(ConfigError, match="changes x and not its pair"):
        fields_of(config, SPEC)


def test_image_conditions_are_not_augmented():
    spec = dataclasses.replace(SPEC, conditions=(Field("seen", "image", (8, 8, 1)),), condition_maps=(Affine(),))
    config = changed(defaults("adm"), {"data.cond": ("seen",), "data.augment": "flip"})
    with pytest.raises(ConfigError, match=r"changes x and not the image 'seen' of data.cond"):
        fields_of(config, spec)
    assert len(fields_of(changed(config, {"data.augment": "none"}), spec)) == 1
    fields_of(changed(config, {"data.cond": ("label",)}), spec)


@pytest.mark.parametrize("flag", ["label", "('label',)", "label(dropout=0)"])
def test_the_flag_takes_plain_names(flag, capfd, tmp_path):
    """gaussians8 has no classes, so the message shows that the flag arrived as a name."""
    assert main(["train", "--config=gaussians8", f"--workdir={tmp_path}/w", f"--config.data.cond={flag}"]) == 2
    assert "data.cond names 'label' as a condition" in capfd.readouterr().err
