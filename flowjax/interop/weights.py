"""Weights in one safetensors file, with all that is needed to use them: the resolved config and the data spec.

Parameters stand under their paths, "up.0.1.block.conv1.kernel", in our layout: kernels are (..., in, out), images NHWC.
The config, the data spec and the step are JSON under `flowjax` in the file's metadata. Other programs read such a file
with the `safetensors` package alone.
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from flowjax.build import build
from flowjax.config import Config, resolve
from flowjax.data import DataError, DataSpec
from flowjax.files import written
from flowjax.interop import WeightsError
from flowjax.interop.tree import fill, flatten
from flowjax.run import Run, load
from flowjax.typing import Params

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""Types in which parameters are stored; they are float32 in memory."""

_KEY = "flowjax"


class Weights(NamedTuple):
    """What a file of weights holds.

    Attributes:
        config: resolved.
        spec: of the data.
        params: of the network that `build(config, spec)` builds.
        step: optimizer steps behind them; 0 if unknown.
    """

    config: Config
    spec: DataSpec
    params: Params
    step: int = 0


def save_weights(path: str | Path, weights: Weights, dtype: str = "float32") -> dict[str, int]:
    """Writes a safetensors file, whole or not at all.

    Args:
        path: of the file; its folder is made.
        weights: what it shall hold.
        dtype: a name in `DTYPES`.

    Returns:
        The number of `parameters` and of `bytes`.

    Raises:
        WeightsError: on an unknown dtype, or if the file cannot be written.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise WeightsError(f"unknown dtype {dtype!r}: known are {', '.join(DTYPES)}")
    # safetensors writes memory as it lies: only contiguous arrays are what they seem
    arrays = {name: np.array(a, DTYPES[dtype], order="C") for name, a in flatten(weights.params).items()}
    record = {"config": weights.config.to_dict(), "data": weights.spec.to_record(), "step": weights.step}
    try:
        with written(path) as part:
            part.touch()
            mode = part.stat().st_mode
            save_file(arrays, part, {_KEY: json.dumps(record)})
            part.chmod(mode)  # safetensors lets nobody else read it
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot write {path}: {error}") from None
    return {"parameters": sum(a.size for a in arrays.values()), "bytes": path.stat().st_size}


def load_weights(path: str | Path) -> Weights:
    """Reads what `save_weights` wrote, and checks it against the network of its config.

    Raises:
        WeightsError: if it is no such file, or its parameters are not those of its config's network.
        ConfigError: if its config is not one of this version.
    """
    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get(_KEY)
        if text is None:
            raise WeightsError(f"{path} has no config in its metadata: it was not written by `flowjax export`")
        record = json.loads(text)
        config, spec, step = resolve(record["config"]), DataSpec.from_record(record["data"]), int(record["step"])
        arrays = load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"no such file: {path}") from None
    except (SafetensorError, OSError, json.JSONDecodeError, KeyError, TypeError, DataError) as error:
        raise WeightsError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    try:
        return Weights(config, spec, fill(abstract_params(config, spec), arrays), step)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def open_weights(path: str | Path) -> Run:
    """A file of weights as a run: to sample, score and guide with, as with `flowjax.load(workdir)`."""
    weights = load_weights(path)
    problem = build(weights.config, weights.spec)
    return Run(Path(path), weights.config, weights.step, problem, weights.params)


def export_run(
    workdir: str | Path, out: str | Path, ema: bool = True, checkpoint: str | int = "last", dtype: str = "float32"
) -> dict[str, int]:
    """Writes the weights of a run's checkpoint; arguments and errors as `flowjax.load` and `save_weights`."""
    run = load(workdir, ema, checkpoint)
    return save_weights(out, Weights(run.config, run.spec, run.params, run.step), dtype) | {"step": run.step}


def abstract_params(config: Config, spec: DataSpec) -> Params:
    """The shapes of the parameters of a config's network, without making any."""
    return jax.eval_shape(build(config, spec).init, jax.random.key(0))
