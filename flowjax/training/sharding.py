"""Where everything lies: one mesh for a laptop and for a pod, and rules by the names of parameters.

The mesh has three axes. The batch is split over `data` and `fsdp` together; what training changes is whole on `data`,
cut up on `fsdp` to save memory, and, where a rule says so, on `tensor`, to share one product among devices. A rule is a
pattern of parameter paths and the mesh axes of the last dimensions of what it matches:

    ("mlp1/kernel$", (None, "tensor"))

Averages and Adam's moments carry the paths of their parameters and so lie as they do; Muon's are stacks by shape, which
only `fsdp` cuts. An array is cut on `fsdp` along the first dimension that is still whole and that divides, where parts
are put together without another copy; small ones stay whole. On any mesh the program is the same function of the same
total batch: the order of sums differs, and in bfloat16 how often they are rounded.
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

_WEIGHTS: tuple[Rule, ...] = (
    (r"conv1/(kernel|weight)$", (None, None, None, "tensor")),
    (r"conv2/(kernel|weight)$", (None, None, "tensor", None)),
    (r"(embed|modulate)/(kernel|weight)$", (None, "tensor")),
)
_PAIR = (*_WEIGHTS, (r"(conv1|embed|modulate|norm2)/(bias|scale)$", ("tensor",)))

RULES: dict[str, tuple[Rule, ...]] = {
    "mlp": ((r"layers/\d*[02468]/kernel$", (None, "tensor")), (r"layers/\d*[13579]/kernel$", ("tensor", None))),
    "unet": _PAIR,
    "adm": _PAIR,
    "edm2": _WEIGHTS,
    "dit": (
        (r"mlp1/kernel$", (None, "tensor")),
        (r"mlp1/bias$", ("tensor",)),
        (r"mlp2/kernel$", ("tensor", None)),
        (r"qkv/kernel$", (None, "tensor")),
        (r"qkv/bias$", ("tensor",)),
        (r"blocks/\d+/out/kernel$", ("tensor", None)),
    ),
}
"""For each `model.name`: the first product of a pair is cut along what it makes, the second along what it takes, so
that the pair needs one sum over devices. (q, k and v are cut together, as one: their parts change places first.)"""

SMALL = 2**14
"""Arrays with fewer numbers than this stay whole on `fsdp`: to gather them costs more than they do."""


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `config.mesh`, over the first devices of a process, or all of several.

    Its axes are said aloud to be `Auto`: diffrax fails under explicit ones.

    Args:
        config: of the run.
        devices: others than JAX's own: those of a machine that is not here, to compile for.

    Raises:
        ConfigError: if the devices do not divide into the mesh, or the batch among the devices.
    """
    devices, asked = jax.devices() if devices is None else devices, config.mesh
    rest = asked.fsdp * asked.tensor
    data = asked.data or max(len(devices) // rest, 1)
    size = f"mesh.data {data} x mesh.fsdp {asked.fsdp} x mesh.tensor {asked.tensor}"
    if data * rest > len(devices):
        raise ConfigError(f"{size} is a mesh of {data * rest} devices; there are {len(devices)}")
    if len(devices) % (data * rest) or (jax.process_count() > 1 and data * rest < len(devices)):
        raise ConfigError(f"{size} leaves some of the {len(devices)} devices idle: let them multiply to that")
    if config.train.batch_size % (data * asked.fsdp * config.train.accumulate):
        parts = f"{data * asked.fsdp} devices"
        if config.train.accumulate > 1:
            parts += f" and train.accumulate {config.train.accumulate} parts"
        raise ConfigError(f"train.batch_size {config.train.batch_size} does not divide among {parts}")
    shape, types, taken = (data, asked.fsdp, asked.tensor), (AxisType.Auto,) * 3, devices[: data * rest]
    try:
        return jax.make_mesh(shape, AXES, types, devices=taken)
    except NotImplementedError:  # a torus whose dimensions do not multiply to these sizes, such as 4 x 4 x 4 to 8 x 8
        placed = mesh_utils.create_device_mesh(shape, taken, allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def shard_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Inside jit: split the leading axis of every leaf over the mesh."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P(BATCH)))


def shardings(tree: PyTree, mesh: Mesh | AbstractMesh, rules: Iterable[Rule], whole: bool = False) -> PyTree:
    """A sharding for every leaf (an array or its shape) of a tree of parameters, or of what follows them.

    Args:
        tree: any part of a `TrainState`.
        mesh: from `make_mesh`.
        rules: the first whose pattern is found in a leaf's path holds.
        whole: as if `fsdp` were 1: how parameters lie where they are used.
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
    """The axis that cuts each dimension, where a rule's axes of the last ones divide them."""
    axes: list[str | None] = [None] * len(shape)
    for i, axis in zip(range(len(shape) - len(ends), len(shape)), ends, strict=True):
        if i >= 0 and axis is not None and shape[i] % mesh.shape[axis] == 0 and mesh.shape[axis] > 1:
            axes[i] = axis
    return axes


def rules_of(config: Config, params: PyTree, mesh: Mesh | AbstractMesh) -> tuple[Rule, ...]:
    """The rules of `mesh.rules`, then those of the model.

    Args:
        config: `mesh.rules` holds texts such as "mlp1/kernel$ = -, tensor", with - for a dimension left whole.
        params: or their shapes.
        mesh: of the run.

    Raises:
        ConfigError: on a rule that cannot be read, matches no parameter, or has no dimension that it could cut.
    """
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    own = tuple(_read(text) for text in config.mesh.rules)
    for text, (pattern, axes) in zip(config.mesh.rules, own, strict=True):
        found = {path: shape for path, shape in shapes.items() if re.search(pattern, path)}
        if not found:
            raise ConfigError(f"mesh.rules: {text!r} matches no parameter; the first is {next(iter(shapes))}")
        asked = {axis: mesh.shape[axis] for axis in axes if axis is not None and mesh.shape[axis] > 1}
        if asked and not any(any(_ends(shape, axes, mesh)) for shape in found.values()):
            (path, shape), (axis, n) = next(iter(found.items())), next(iter(asked.items()))
            size = " x ".join(map(str, shape))
            raise ConfigError(f"mesh.rules: {text!r} cuts nothing: {path} is {size}, and mesh.{axis} {n}")
    return own + RULES.get(config.model.name if "model" in config else "", ())


def _read(text: str) -> Rule:
    pattern, equals, ends = text.rpartition("=")
    axes = tuple(None if end.strip() == "-" else end.strip() for end in ends.split(","))
    named = [axis for axis in axes if axis is not None]
    if not equals or not set(named) <= set(AXES) or len(set(named)) < len(named):
        raise ConfigError(
            f"mesh.rules: {text!r} is not PATTERN = AXIS, AXIS..., each axis one of {', '.join(AXES)}, once, or -"
        )
    try:
        re.compile(pattern.strip())
    except re.error as error:
        raise ConfigError(f"mesh.rules: {text!r}: {error}") from None
    return pattern.strip(), axes


def table(tree: PyTree, places: PyTree) -> str:
    """Every leaf with its shape, how it is cut and its bytes on a device; then the sum."""
    rows, total = [], 0
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), place in zip(leaves, jax.tree.leaves(places), strict=True):
        size = math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        total += size
        cut = ", ".join("-" if axis is None else str(axis) for axis in place.spec) or "whole"
        rows.append((path_name(path), "x".join(map(str, leaf.shape)), cut, f"{size:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join(text.ljust(w) for text, w in zip(row[:3], widths, strict=False)) + f"  {row[3]:>{widths[3]}}"
        for row in rows
    ]
    return "\n".join([*lines, f"{total:,} bytes on each device"])
