"""Published networks: what each converter's usual checkpoint is, as a config and a data spec of ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.config import Config, resolve
from flowjax.data import Affine, DataSpec
from flowjax.errors import ConfigError, WeightsError, lookup
from flowjax.interop.dit import from_dit, from_sit
from flowjax.interop.torch_file import read_state_dict
from flowjax.interop.torchcfm import from_torchcfm
from flowjax.interop.weights import Weights, abstract_variables
from flowjax.models.dit import SIZES
from flowjax.typing import Params

__all__ = ["PUBLISHED", "Published", "convert"]


@dataclass(frozen=True)
class Published:
    """A family of published networks.

    Attributes:
        config: keys of a config that differ from the defaults, for its usual network.
        spec: of the data it was trained on.
        convert: (state dict, like, config) -> parameters.
    """

    config: dict[str, Any]
    spec: DataSpec
    convert: Callable[[Mapping[str, Any], Params, Config], Params]


_LATENTS = DataSpec("imagenet_latents", (32, 32, 4), Affine(1 / 0.18215), num_classes=1000)
"""Stable Diffusion's autoencoder on 256 x 256 pixels; the networks see its latents times 0.18215."""

_CIFAR10 = DataSpec("cifar10", (32, 32, 3), Affine(127.5, 128.0), num_classes=10, levels=256)
"""Trained on k / 127.5 - 1 for pixels k = 0 ... 255 as they are: k is the middle of what is floored to it."""

_XL = {"model.name": "dit", "data.cond": ("label",), "model.patch": 2} | {
    f"model.{key}": value for key, value in SIZES["XL"].items()
}

PUBLISHED: dict[str, Published] = {
    "torchcfm": Published(
        {"model.name": "adm"},
        _CIFAR10,
        lambda state, like, config: from_torchcfm(
            state, like, 0 if config.model.heads else config.model.head_width, heads=config.model.heads
        ),
    ),
    "dit": Published(
        _XL
        | {
            "model.time_scale": 1000.0,
            "path.schedule": "ddpm_linear",
            "prediction": "noise_variance",
            "method.name": "variational",
            "method.variance": "learned",
            "method.hybrid": True,
        },
        _LATENTS,
        lambda state, like, config: from_dit(state, like),
    ),
    "sit": Published(_XL | {"model.time_scale": 1.0}, _LATENTS, lambda state, like, config: from_sit(state, like)),
}
"""By the name of their project: torchcfm's CIFAR-10 flows, DiT-XL/2 and SiT-XL/2 (linear path, velocity)."""


def convert(
    project: str,
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    ema: bool = True,
) -> Weights:
    """A published checkpoint as weights of ours, ready for `save_weights`.

    A state dict does not hold the number of its attention heads, and the same tensors with another number make another
    network. So a torchcfm network needs `model.head_width` or `model.heads` among the overrides, and a DiT or SiT of
    another `model.width` needs `model.heads`.

    Args:
        project: a name in `PUBLISHED`.
        path: of the `.pt` file.
        overrides: config keys that differ from the project's usual network, such as {"model.width": 384}.
        shape: (H, W, C) of one image, if it is another.
        classes: number of labels, if it is another.
        ema: take the moving average where the file holds both.

    Raises:
        ConfigError: on an unknown project or key, or if the number of attention heads is left open.
        WeightsError: if the file cannot be read, or is of another model.
    """
    usual = lookup("project", project, PUBLISHED)
    spec = replace(usual.spec, shape=shape or usual.spec.shape)
    spec = spec if classes is None else replace(spec, num_classes=classes)
    keys = {**usual.config, "data.name": spec.name, **(overrides or {})}
    if keys["model.name"] != usual.config["model.name"]:
        raise ConfigError(f"model.name: {project}'s networks are {usual.config['model.name']!r} here")
    _check_heads(project, overrides or {})
    config = resolve(keys)
    state = read_state_dict(path, ("ema", "ema_model", "model", "net_model") if ema else ("model", "net_model"))
    params = usual.convert(state, abstract_variables(config, spec).params, config)
    if "pos_embed" in state and (told := np.shape(state["pos_embed"])[1]) != (n := _tokens(config, spec)):
        raise WeightsError(f"{path} is of images of {told} patches, and {spec.shape} has {n}: say its shape")
    return Weights(config, spec, params)


def _check_heads(project: str, overrides: Mapping[str, Any]) -> None:
    """Refuses to guess the number of attention heads, which a state dict does not hold."""
    given = [key for key in ("model.heads", "model.head_width") if overrides.get(key)]
    if project == "torchcfm" and len(given) == 2:
        raise ConfigError("--heads and --head_width cannot be used together: give the one that was used in training")
    if project == "torchcfm" and not given:
        raise ConfigError(
            "a torchcfm checkpoint does not hold its number of attention heads: give either --head_width 64 (its "
            "num_head_channels, 64 in the published CIFAR-10 networks) or --heads 1 (its num_heads, where "
            "num_head_channels is -1, the default of UNetModelWrapper)"
        )
    if project != "torchcfm" and "model.width" in overrides and not overrides.get("model.heads"):
        raise ConfigError("model.heads: a checkpoint does not hold its number of attention heads; give --heads too")


def _tokens(config: Config, spec: DataSpec) -> int:
    height, width, _ = spec.shape
    return height * width // config.model.patch**2
