"""The device mesh, and the shardings of the training state and of batches.

The mesh has three axes. The batch is split over `data` and `fsdp`. The training state is replicated over `data`, split
over `fsdp` to save memory, and split over `tensor` where a rule says so, which divides matrix products among devices. A
rule is a regular expression for paths of parameters, and the mesh axes of the last dimensions of the parameters that it
matches:

    ("mlp1/kernel$", (None, "tensor"))

The paths of moving averages and of Adam's moments end with those of their parameters, so they have the same shardings.
Muon's moments are stacks by shape, which only `fsdp` splits. The axis `fsdp` splits the first dimension that is not
split yet and is divisible by its size, because the parts are then gathered without another copy; small arrays are
replicated. On any mesh a step computes the same function of the same total batch. Only the order of sums differs, and
in bfloat16 how often they are rounded.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flowjax.config import Config
from flowjax.errors import ConfigError
from flowjax.trees import path_name
from flowjax.typing import PyTree

__all__ = [
    "AXES",
    "BATCH",
    "RULES",
    "SMALL",
    "Rule",
    "make_mesh",
    "replicated",
    "rules_of",
    "shard_batch",
    "shardings",
    "table",
]

AXES = ("data", "fsdp", "tensor")

BATCH = ("data", "fsdp")
"""The mesh axes over which a batch is split."""

Rule = tuple[str, tuple[str | None, ...]]
"""(regular expression for paths of parameters, mesh axes of the last dimensions, None for a dimension not split)."""

_WEIGHTS: tuple[Rule, ...] = (
    (r"conv1/(kernel|weight)$", (None, None, None, "tensor")),
    (r"conv2/(kernel|weight)$", (None, None, "tensor", None)),
    (r"(embed|modulate)/(kernel|weight)$", (None, "tensor")),
)
_RESIDUAL: tuple[Rule, ...] = (
    (r"mlp1/kernel$", (None, "tensor")),
    (r"mlp1/bias$", ("tensor",)),
    (r"mlp2/kernel$", ("tensor", None)),
)
_ATTENTION: tuple[Rule, ...] = (
    *_RESIDUAL,
    (r"qkv/kernel$", (None, "tensor")),
    (r"qkv/bias$", ("tensor",)),
    (r"blocks/\d+/out/kernel$", ("tensor", None)),
)
_PAIR = (*_WEIGHTS, (r"(conv1|embed|modulate|norm2)/(bias|scale)$", ("tensor",)))

RULES: dict[str, tuple[Rule, ...]] = {
    "mlp": ((r"layers/\d*[02468]/kernel$", (None, "tensor")), (r"layers/\d*[13579]/kernel$", ("tensor", None))),
    "resmlp": _RESIDUAL,
    "unet": _PAIR,
    "unet1d": _PAIR,
    "adm": _PAIR,
    "edm2": _WEIGHTS,
    "dit": _ATTENTION,
    "transformer": _ATTENTION,
}
"""The rules for each `model.name`. Of two successive matrix products, the kernel of the first is split along its output
dimension and the kernel of the second along its input dimension, so that the pair needs one sum over devices. (The
kernel of q, k and v is split as one matrix, and their parts are exchanged between devices afterwards.)"""

SMALL = 2**14
"""Arrays with fewer numbers than this are not split over `fsdp`: gathering them costs more than it saves."""


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes the mesh of `config.mesh`.

    A single process may use a part of its devices, if their number divides the number of all devices. Several processes
    use all devices. The axes have the type `AxisType.Auto`, because diffrax fails with explicit axes.

    Args:
        config: the config of the run.
        devices: by default `jax.devices()`; the devices of another machine to compile for that machine.

    Raises:
        ConfigError: if the number of devices does not fit the mesh, or the batch size does not fit the devices.
    """
    devices, keys = jax.devices() if devices is None else devices, config.mesh
    rest = keys.fsdp * keys.tensor
    data = keys.data or max(len(devices) // rest, 1)
    size = f"mesh.data {data} x mesh.fsdp {keys.fsdp} x mesh.tensor {keys.tensor}"
    if data * rest > len(devices):
        raise ConfigError(f"{size} is a mesh of {data * rest} devices; there are {len(devices)}")
    if len(devices) % (data * rest) or (jax.process_count() > 1 and data * rest < len(devices)):
        raise ConfigError(f"{size} leaves some of the {len(devices)} devices idle: choose sizes with that product")
    if config.train.batch_size % (data * keys.fsdp * config.train.accumulate):
        parts = f"{data * keys.fsdp} devices"
        if config.train.accumulate > 1:
            parts += f" and train.accumulate {config.train.accumulate} parts"
        raise ConfigError(f"train.batch_size {config.train.batch_size} does not divide among {parts}")
    shape, types, used = (data, keys.fsdp, keys.tensor), (AxisType.Auto,) * 3, devices[: data * rest]
    try:
        return jax.make_mesh(shape, AXES, types, devices=used)
    except NotImplementedError:  # a TPU torus whose axes must be split, such as 4 x 4 x 4 for a mesh of 8 x 8
        arranged = mesh_utils.create_device_mesh(shape, used, allow_split_physical_axes=True)
        return Mesh(arranged, AXES, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def shard_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Constrains the leading axis of every leaf to be split over `BATCH`, inside a compiled function."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P(BATCH)))


def shardings(tree: PyTree, mesh: Mesh | AbstractMesh, rules: Iterable[Rule], whole: bool = False) -> PyTree:
    """The sharding of every leaf of a tree.

    Args:
        tree: arrays or shapes, any part of a `TrainState`.
        mesh: from `make_mesh`.
        rules: the first rule whose pattern is found in the path of a leaf applies to it.
        whole: do not split over `fsdp`, as where the network uses the parameters.

    Returns:
        A tree of `NamedSharding`s.
    """
    rules = tuple(rules)
    one = lambda path, leaf: NamedSharding(mesh, _spec(path_name(path), leaf.shape, mesh, rules, whole))
    return jax.tree_util.tree_map_with_path(one, tree)


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: tuple[Rule, ...], whole: bool) -> P:
    ends = next((ends for pattern, ends in rules if re.search(pattern, path)), ())
    axes = [None if whole and axis == "fsdp" else axis for axis in _ends(shape, ends, mesh)]
    n = mesh.shape["fsdp"]
    if n > 1 and not whole and "fsdp" not in axes and math.prod(shape) >= SMALL:
        free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % n == 0]
        if free:
            axes[free[0]] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return P(*axes)


def _ends(shape: tuple[int, ...], ends: tuple[str | None, ...], mesh: Mesh | AbstractMesh) -> list[str | None]:
    """The mesh axis that splits each dimension, from a rule's axes of the last dimensions, where their sizes divide."""
    axes: list[str | None] = [None] * len(shape)
    for i, axis in zip(range(len(shape) - len(ends), len(shape)), ends, strict=True):
        if i >= 0 and axis is not None and shape[i] % mesh.shape[axis] == 0 and mesh.shape[axis] > 1:
            axes[i] = axis
    return axes


def rules_of(config: Config, params: PyTree, mesh: Mesh | AbstractMesh) -> tuple[Rule, ...]:
    """The rules in `mesh.rules`, followed by the rules of the model in `RULES`.

    Args:
        config: `mesh.rules` holds texts such as "mlp1/kernel$ = -, tensor", with - for a dimension that is not split.
        params: the parameters, or their shapes.
        mesh: the mesh of the run.

    Raises:
        ConfigError: if a rule in `mesh.rules` cannot be read, matches no parameter, or splits no parameter.
    """
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    custom = tuple(_read(text) for text in config.mesh.rules)
    for text, (pattern, axes) in zip(config.mesh.rules, custom, strict=True):
        found = {path: shape for path, shape in shapes.items() if re.search(pattern, path)}
        if not found:
            raise ConfigError(f"mesh.rules: {text!r} matches no parameter; the first is {next(iter(shapes))}")
        sizes = {axis: mesh.shape[axis] for axis in axes if axis is not None and mesh.shape[axis] > 1}
        if sizes and not any(any(_ends(shape, axes, mesh)) for shape in found.values()):
            (path, shape), (axis, n) = next(iter(found.items())), next(iter(sizes.items()))
            size = " x ".join(map(str, shape))
            raise ConfigError(f"mesh.rules: {text!r} splits nothing: {path} is {size}, and mesh.{axis} is {n}")
    return custom + RULES.get(config.model.name if "model" in config else "", ())


def _read(text: str) -> Rule:
    pattern, equals, ends = text.rpartition("=")
    axes = tuple(None if end.strip() == "-" else end.strip() for end in ends.split(","))
    named = [axis for axis in axes if axis is not None]
    if not equals or not set(named) <= set(AXES) or len(set(named)) < len(named):
        raise ConfigError(
            f"mesh.rules: {text!r} is not PATTERN = AXIS, AXIS..., where each AXIS is - or one of {', '.join(AXES)}, "
            "which may occur once"
        )
    try:
        re.compile(pattern.strip())
    except re.error as error:
        raise ConfigError(f"mesh.rules: {text!r}: {error}") from None
    return pattern.strip(), axes


def table(tree: PyTree, leaf_shardings: PyTree) -> str:
    """A table of the leaves of a tree, with their shapes, shardings and bytes per device, and the sum of the bytes.

    Args:
        tree: arrays or shapes.
        leaf_shardings: the sharding of each leaf.
    """
    rows, total = [], 0
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(leaf_shardings), strict=True):
        size = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        total += size
        split = ", ".join("-" if axis is None else str(axis) for axis in sharding.spec) or "whole"
        rows.append((path_name(path), "x".join(map(str, leaf.shape)), split, f"{size:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join(text.ljust(w) for text, w in zip(row[:3], widths, strict=False)) + f"  {row[3]:>{widths[3]}}"
        for row in rows
    ]
    return "\n".join([*lines, f"{total:,} bytes on each device"])
