"""Published networks: what each converter's usual checkpoint is, as a config and a data spec of ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.config import Config, ConfigError, lookup, resolve
from flowjax.data import Affine, DataSpec
from flowjax.interop import WeightsError
from flowjax.interop.dit import from_dit, from_sit
from flowjax.interop.torch_file import read_state_dict
from flowjax.interop.torchcfm import from_torchcfm
from flowjax.interop.weights import Weights, abstract_params
from flowjax.models.dit import SIZES
from flowjax.typing import Params


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

_XL = {"model.name": "dit", "model.conditional": True, "model.patch": 2} | {
    f"model.{key}": value for key, value in SIZES["XL"].items()
}

PUBLISHED: dict[str, Published] = {
    "torchcfm": Published(
        {"model.name": "adm"},
        _CIFAR10,
        lambda state, like, config: from_torchcfm(state, like, config.model.head_width),
    ),
    "dit": Published(
        _XL
        | {
            "model.time_scale": 1000.0,
            "path.schedule": "ddpm_linear",
            "prediction": "noise_variance",
            "loss.name": "hybrid",
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

    A state dict does not tell how its attention is cut into heads: with another `model.width`, say `model.heads`; with
    other heads than torchcfm's usual ones, `model.head_width`.

    Args:
        project: a name in `PUBLISHED`.
        path: of the `.pt` file.
        overrides: config keys that differ from the project's usual network, such as {"model.width": 384}.
        shape: (H, W, C) of one image, if it is another.
        classes: number of labels, if it is another.
        ema: take the moving average where the file holds both.

    Raises:
        ConfigError: on an unknown project or key, or a width without its heads.
        WeightsError: if the file cannot be read, or is of another model.
    """
    usual = lookup("project", project, PUBLISHED)
    spec = replace(usual.spec, shape=shape or usual.spec.shape)
    spec = spec if classes is None else replace(spec, num_classes=classes)
    keys = {**usual.config, "data.name": spec.name, **(overrides or {})}
    if keys["model.name"] != usual.config["model.name"]:
        raise ConfigError(f"model.name: {project}'s networks are {usual.config['model.name']!r} here")
    if "model.width" in (overrides or {}) and "model.heads" not in (overrides or {}):
        raise ConfigError("model.heads: a checkpoint does not tell them; say them together with model.width")
    config = resolve(keys)
    state = read_state_dict(path, ("ema", "ema_model", "model", "net_model") if ema else ("model", "net_model"))
    params = usual.convert(state, abstract_params(config, spec), config)
    if "pos_embed" in state and (told := np.shape(state["pos_embed"])[1]) != (n := _tokens(config, spec)):
        raise WeightsError(f"{path} is of images of {told} patches, and {spec.shape} has {n}: say its shape")
    return Weights(config, spec, params)


def _tokens(config: Config, spec: DataSpec) -> int:
    height, width, _ = spec.shape
    return height * width // config.model.patch**2
