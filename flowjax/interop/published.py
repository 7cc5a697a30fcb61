"""Published networks: the config and the data spec of each project's usual checkpoint, and its conversion."""

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
        config: config keys of its usual network that differ from the defaults.
        spec: the data on which it was trained.
        convert: function (state dict, like, config) -> parameters.
    """

    config: dict[str, Any]
    spec: DataSpec
    convert: Callable[[Mapping[str, Any], Params, Config], Params]


_LATENTS = DataSpec("imagenet_latents", (32, 32, 4), Affine(1 / 0.18215), num_classes=1000)
"""Latents of Stable Diffusion's autoencoder for 256 x 256 pixels; the networks take them multiplied by 0.18215."""

_CIFAR10 = DataSpec("cifar10", (32, 32, 3), Affine(127.5, 128.0), num_classes=10, levels=256)
"""Trained without dequantisation on k / 127.5 - 1, to which this maps the middle of [k, k + 1), for k = 0 ... 255."""

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
"""Networks by project: torchcfm's CIFAR-10 flows, DiT-XL/2, and SiT-XL/2 (linear path, velocity prediction)."""


def convert(
    project: str,
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    ema: bool = True,
) -> Weights:
    """Converts a published checkpoint to `Weights`, which `save_weights` can write.

    A state dict does not hold the number of attention heads, and the same tensors with another number of heads are
    another network. So a torchcfm network needs `model.head_width` or `model.heads` among the overrides, and a DiT or
    SiT of another `model.width` needs `model.heads`.

    Args:
        project: a name in `PUBLISHED`.
        path: path of the `.pt` or `.safetensors` file.
        overrides: config keys that differ from the project's usual network, such as {"model.width": 384}.
        shape: (H, W, C) of one image, or None for the shape of the usual network.
        classes: number of classes, or None for the number of the usual network.
        ema: whether to take the moving average if the file holds both.

    Returns:
        The weights, with their config and data spec.

    Raises:
        ConfigError: if the project or a key is unknown, or the number of attention heads is not given.
        WeightsError: if the file cannot be read or belongs to another model.
    """
    usual = lookup("project", project, PUBLISHED)
    spec = replace(usual.spec, shape=shape or usual.spec.shape)
    spec = spec if classes is None else replace(spec, num_classes=classes)
    keys = {**usual.config, "data.name": spec.name, **(overrides or {})}
    if keys["model.name"] != usual.config["model.name"]:
        raise ConfigError(f"model.name must be {usual.config['model.name']!r} for networks of {project}")
    _check_heads(project, overrides or {})
    config = resolve(keys)
    state = read_state_dict(path, ("ema", "ema_model", "model", "net_model") if ema else ("model", "net_model"))
    params = usual.convert(state, abstract_variables(config, spec).params, config)
    if "pos_embed" in state and (tokens := np.shape(state["pos_embed"])[1]) != (n := _tokens(config, spec)):
        raise WeightsError(
            f"{path} is for images of {tokens} patches, but images of shape {spec.shape} have {n}: give the right shape"
        )
    return Weights(config, spec, params)


def _check_heads(project: str, overrides: Mapping[str, Any]) -> None:
    """Checks that the number of attention heads, which a state dict does not hold, is given."""
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
        raise ConfigError(
            "a checkpoint does not hold its number of attention heads, so model.heads (--heads) is needed"
        )


def _tokens(config: Config, spec: DataSpec) -> int:
    height, width, _ = spec.shape
    return height * width // config.model.patch**2
