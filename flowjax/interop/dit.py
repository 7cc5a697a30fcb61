"""DiT's and SiT's published checkpoints (facebookresearch/DiT, willisma/SiT) as parameters of `models.dit.DiT`.

Both projects use one network under one set of names. Patches are a convolution there and a matrix here; tokens of the
output hold (row, column, channel) in both, noise before variance in the channels, so the output needs no permutation.
The positions (`pos_embed`) are fixed and computed here; a checkpoint with others is refused.

What t is: SiT's runs from noise (0) to data (1), as here: `time_scale=1`, t as it is. DiT's is the index i = 0 ... N-1
of a chain's step, larger with more noise, and level k = i + 1 stands here at t = 1 - k / N (`schedules.discrete`), so
i = N - 1 - N t. `from_dit` builds that into the network: with `time_scale=N` the converted network takes t in [0, 1], 0
noise and 1 data. cos(a - b) and sin(a - b) are linear in cos(b) and sin(b), so the shift and the reversal are a
rotation of the weights that the sines meet first. Exact at the chain's steps; between them DiT was never trained.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from flowjax.errors import WeightsError
from flowjax.interop.tree import Taken, check, fill, flatten
from flowjax.models.dit import TIME_FEATURES, positions
from flowjax.typing import Params

__all__ = ["BLOCK", "LINEAR", "from_dit", "from_sit", "reverse_time"]

LINEAR = {
    "t_embedder.mlp.0": "time1",
    "t_embedder.mlp.2": "time2",
    "final_layer.adaLN_modulation.1": "modulation",
    "final_layer.linear": "out",
}
"""Linear layers, theirs to ours."""

BLOCK = {
    "attn.qkv": "qkv",
    "attn.proj": "out",
    "mlp.fc1": "mlp1",
    "mlp.fc2": "mlp2",
    "adaLN_modulation.1": "modulation",
}
"""Linear layers of a block: `blocks.N.` before both."""


def from_dit(state: Mapping[str, Any], like: Params, steps: int = 1000) -> Params:
    """A DiT checkpoint for a network with `time_scale=steps`; t = 1 - (i + 1) / steps is its step i.

    Args:
        state: the state dict (`read_state_dict`).
        like: the parameters of the network, or their shapes.
        steps: N, of the chain it was trained on.

    Returns:
        Parameters like `like`.

    Raises:
        WeightsError: if the checkpoint is of another model.
    """
    flat = _convert(state, flatten(like))
    check(like, flat)
    flat["time1.kernel"] = reverse_time(flat["time1.kernel"], steps)
    return fill(like, flat)


def from_sit(state: Mapping[str, Any], like: Params) -> Params:
    """A SiT checkpoint for a network with `time_scale=1`; t means the same in both.

    SiT's networks are trained with twice the channels in the output and the second half never used; it is left out
    where the network has the first alone (`outputs=1`).

    Args, returns, raises: as `from_dit`.
    """
    wanted = flatten(like)
    flat = _convert(state, wanted)
    pixels, used = wanted["stem.kernel"].shape[0], np.shape(wanted["out.bias"])[0]  # in and out, p * p * channels each
    twice = all(np.shape(flat[name])[-1:] == (2 * pixels,) for name in ("out.kernel", "out.bias"))
    if used == pixels and twice and flat["stem.kernel"].shape[0] == pixels:
        channels = np.shape(state["x_embedder.proj.weight"])[1]
        first = lambda a: a.reshape(*a.shape[:-1], -1, 2, channels)[..., 0, :].reshape(*a.shape[:-1], pixels)
        flat |= {name: first(flat[name]) for name in ("out.kernel", "out.bias")}
    return fill(like, flat)


def reverse_time(kernel: Float[np.ndarray, "F W"], steps: int) -> Float[np.ndarray, "F W"]:
    """The weights that give for the features of s what `kernel` gives for those of steps - 1 - s."""
    half = TIME_FEATURES // 2
    # the frequencies as float32 has them, as both networks do; the rest in float64
    frequency = np.exp(-np.log(np.float32(10_000)) / half * np.arange(half, dtype=np.float32)).astype(np.float64)
    cos, sin = np.cos((steps - 1) * frequency)[:, None], np.sin((steps - 1) * frequency)[:, None]
    of_cos, of_sin = kernel[:half].astype(np.float64), kernel[half:].astype(np.float64)
    return np.concatenate([of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos]).astype(np.float32)


def _convert(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All parameters by our names; the number of blocks is that of `wanted`."""
    take, flat = Taken(state), {}
    depth = len({name.split(".")[1] for name in wanted if name.startswith("blocks.")})
    table = LINEAR | {f"blocks.{i}.{a}": f"blocks.{i}.{b}" for i in range(depth) for a, b in BLOCK.items()}
    for theirs, ours in table.items():
        flat[f"{ours}.kernel"] = take(f"{theirs}.weight", lambda a: a.astype(np.float32).T)
        flat[f"{ours}.bias"] = take(f"{theirs}.bias")
    # (width, channel, row, column) to (row, column, channel, width)
    patches = lambda a: a.astype(np.float32).transpose(2, 3, 1, 0).reshape(-1, a.shape[0])
    flat["stem.kernel"], flat["stem.bias"] = take("x_embedder.proj.weight", patches), take("x_embedder.proj.bias")
    if "encoders.label.table" in wanted:
        flat["encoders.label.table"] = take("y_embedder.embedding_table.weight")
    _check_positions(take("pos_embed"), wanted["stem.bias"].shape[0])
    take.finish()
    return flat


def _check_positions(table: np.ndarray, width: int) -> None:
    """Compares `pos_embed`, (1, tokens, width), with the fixed sines, which it must be."""
    side = round(np.size(table) ** 0.5 / width**0.5)
    fits = side > 0 and table.shape == (1, side**2, width)
    if not fits or not np.abs(table[0].astype(np.float32) - positions(side, side, width)).max() <= 1e-2:
        raise WeightsError(
            "these weights belong to another model: pos_embed is not the fixed sines of a square of patches"
        )
