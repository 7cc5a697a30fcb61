"""Weights in one safetensors file, together with the resolved config and the data spec that are needed to use them.

Parameters are stored by their paths, such as "up.0.1.block.conv1.kernel", with kernels (..., in, out) and images NHWC.
The config, the data spec and the step are stored as JSON under `flowjax` in the metadata of the file. Other programs
need only the `safetensors` package to read such a file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flowjax.archives import ArchiveError, check_regular, one_line
from flowjax.build import build
from flowjax.config import MODEL_DEFAULTS, Config, resolve
from flowjax.data import DataError, DataSpec
from flowjax.errors import ConfigError, RunFault, WeightsError
from flowjax.files import written
from flowjax.inference.run import Run, load
from flowjax.interop.tree import check, check_variables, fill, fill_variables, flatten
from flowjax.models.functional import Variables
from flowjax.training.workdir import FORMAT, NO_FORMAT
from flowjax.training.writers import disk_problem
from flowjax.trees import on_host
from flowjax.typing import Params, PyTree

__all__ = ["DTYPES", "Weights", "abstract_variables", "export_run", "load_weights", "open_weights", "save_weights"]

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""Dtypes in which parameters can be stored; in memory they are float32."""

_KEY = "flowjax"

_VARIABLES = "variables:"
"""Prefix of the names of arrays that are not parameters."""


class Weights(NamedTuple):
    """The content of a weights file.

    Attributes:
        config: the resolved config.
        spec: the description of the training data.
        params: parameters of the network that `build(config, spec)` builds.
        step: number of optimizer steps taken; 0 if unknown.
        variables: the variables of the network that are not parameters, such as batch statistics.
    """

    config: Config
    spec: DataSpec
    params: Params
    step: int = 0
    variables: PyTree = {}  # noqa: RUF012


def save_weights(path: str | Path, weights: Weights, dtype: str = "float32") -> dict[str, int]:
    """Writes a safetensors file atomically.

    Args:
        path: path of the file; its folder is created.
        weights: the content.
        dtype: a name in `DTYPES`.

    Returns:
        The number of `parameters` and the number of `bytes` of the file.

    Raises:
        WeightsError: if the dtype is unknown.
        RunFault: if the file cannot be written.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise WeightsError(f"unknown dtype {dtype!r}: known are {', '.join(DTYPES)}")
    # safetensors writes the memory of an array without regard to its strides, so it must be contiguous
    params = {name: np.array(a, DTYPES[dtype], order="C") for name, a in flatten(weights.params).items()}
    arrays = params | {f"{_VARIABLES}{name}": on_host(a) for name, a in flatten(weights.variables).items()}
    config = weights.config.to_dict()
    config["data"]["path"] = Path(config["data"]["path"]).name  # only the name, because the file may be published
    record = {"format": FORMAT, "config": config, "data": weights.spec.to_record(), "step": weights.step}
    try:
        with written(path) as part:
            part.touch()
            mode = part.stat().st_mode
            save_file(arrays, part, {_KEY: json.dumps(record)})
            part.chmod(mode)  # safetensors makes the file unreadable for other users
    except (OSError, SafetensorError) as error:
        raise RunFault(f"cannot write {path}: {disk_problem(error) or error}") from None
    return {"parameters": sum(a.size for a in params.values()), "bytes": path.stat().st_size}


def load_weights(path: str | Path, plugins: Sequence[str] = ()) -> Weights:
    """Reads a file written by `save_weights`, and checks it against the network of its config.

    Args:
        path: path of the file.
        plugins: modules that may be imported for the names in its config, as in `flowjax.load`.

    Raises:
        WeightsError: if the file cannot be read, or its parameters do not fit the network of its config.
        ConfigError: if its config is not valid in this version.
    """
    path = Path(path)
    try:
        check_regular(path)
    except ArchiveError as error:
        raise WeightsError(str(error)) from None
    try:
        with safe_open(path, "np") as file:
            declared = {name: _Declared.of(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
            config, spec, step = _read_record((file.metadata() or {}).get(_KEY), len(declared), plugins)
            params, variables = abstract_variables(config, spec, plugins)
            kept = {name: one for name, one in declared.items() if not name.startswith(_VARIABLES)}
            rest = {name.removeprefix(_VARIABLES): one for name, one in declared.items() if name not in kept}
            check(params, kept)
            check_variables(variables, rest)
            filled = fill(params, {name: file.get_tensor(name) for name in kept})
            others = fill_variables(variables, {name: file.get_tensor(_VARIABLES + name) for name in rest})
            return Weights(config, spec, filled, step, others)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except DataError as error:
        raise WeightsError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file, or a config with absurd values, can raise any exception
        raise WeightsError(f"{path} cannot be read: {type(error).__name__}: {one_line(error)}") from None


class _Declared(NamedTuple):
    """The shape and dtype of one array in the header of a safetensors file."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, view: Any) -> "_Declared":
        names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
        return cls(tuple(view.get_shape()), names.get(str(view.get_dtype()), str(view.get_dtype())))


def _read_record(text: str | None, tensors: int, plugins: Sequence[str]) -> tuple[Config, DataSpec, int]:
    """Reads the config, the data spec and the step from the metadata of a file that holds `tensors` tensors."""
    if text is None:
        raise WeightsError("it has no config in its metadata: it was not written by `flowjax export`")
    record = json.loads(text)
    entries = {"config": dict, "data": dict, "step": int}
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in entries.items()):
        raise WeightsError(f"its metadata does not hold {', '.join(entries)} as `flowjax export` writes them")
    if record.get("format") != FORMAT:
        raise WeightsError(f"it was written by another version of flowjax: {NO_FORMAT}")
    config, data = resolve(record["config"], plugins), record["data"]
    model = config.get("model", {})
    known = model if model.get("name") in MODEL_DEFAULTS else {}
    blocks = known.get("depth", 1) * known.get("blocks", 1) * len(known.get("multipliers", "1"))
    if blocks > max(tensors, 16):  # before the network is built, which takes time in proportion to its blocks
        raise WeightsError(
            f"these weights belong to another model: the config has {blocks} blocks, but the file has {tensors} tensors"
        )
    return config, DataSpec.from_record(data), max(0, record["step"])


def open_weights(path: str | Path, plugins: Sequence[str] = ()) -> Run:
    """Opens a weights file for sampling, scoring and guidance, like `flowjax.load(workdir)`.

    Args:
        path: path of the file.
        plugins: modules that may be imported for the names in its config, as in `flowjax.load`.

    Raises:
        WeightsError: if the file cannot be read, or its parameters do not fit the network of its config.
        ConfigError: if its config is not valid in this version.
    """
    weights = load_weights(path, plugins)
    method = build(weights.config, weights.spec, plugins)
    network = weights.params, weights.variables
    return Run(Path(path), weights.config, weights.step, weights.spec, method, *network, tuple(plugins))


def export_run(
    workdir: str | Path,
    out: str | Path,
    ema: bool = True,
    checkpoint: str | int = "last",
    dtype: str = "float32",
    plugins: Sequence[str] = (),
    width: float | None = None,
) -> dict[str, int]:
    """Writes the weights of a checkpoint of a run to a safetensors file.

    Args:
        workdir: the folder of the run.
        out: path of the file to write.
        ema: whether to export the moving average of the parameters.
        checkpoint: the checkpoint, as in `flowjax.load`.
        dtype: a name in `DTYPES`.
        plugins: modules that may be imported for the names in the config, as in `flowjax.load`.
        width: the width of the average to export instead, as in `flowjax.load`.

    Returns:
        The number of `parameters`, the number of `bytes` of the file, and the `step` of the checkpoint.

    Raises:
        WeightsError: if the dtype is unknown.
        RunFault: if the file cannot be written.
    """
    run = load(workdir, ema, checkpoint, width, plugins)
    return save_weights(out, Weights(run.config, run.spec, run.params, run.step, run.variables), dtype) | {
        "step": run.step
    }


def abstract_variables(config: Config, spec: DataSpec, plugins: Sequence[str] = ()) -> Variables:
    """Returns the shapes of the parameters and other variables of the network of a config, without allocating them."""
    return jax.eval_shape(build(config, spec, plugins).init, jax.random.key(0))
