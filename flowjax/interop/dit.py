"""Converts published DiT and SiT checkpoints (facebookresearch/DiT, willisma/SiT) to parameters of `models.dit.DiT`.

DiT is from Peebles and Xie 2023 (arXiv:2212.09748), SiT from Ma et al. 2024 (arXiv:2401.08740). Both use the same
network with the same parameter names. Their patch embedding is a convolution, and here it is a matrix. Output tokens
are ordered (row, column, channel) in all three, with the noise before the variance in the channels, so the output needs
no permutation. The position embedding (`pos_embed`) is fixed and computed here; a checkpoint with another one is
refused.

Time: SiT's t runs from noise (0) to data (1), as here, so `time_scale=1`. DiT's time is the step index i = 0 ... N-1 of
a diffusion chain, where a larger i means more noise. The noise level k = i + 1 corresponds to t = 1 - k / N here
(`schedules.discrete`), so i = N - 1 - N t. `from_dit` changes the weights such that a network with `time_scale=N` takes
t in [0, 1]: cos(a - b) and sin(a - b) are linear in cos(b) and sin(b), so the shift and the reversal of time are a
rotation of the weights of the first layer of the time embedding. The conversion is exact at the steps of the chain; DiT
was not trained between them.
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
"""Linear layers outside the blocks: name in a checkpoint to name here."""

BLOCK = {
    "attn.qkv": "qkv",
    "attn.proj": "out",
    "mlp.fc1": "mlp1",
    "mlp.fc2": "mlp2",
    "adaLN_modulation.1": "modulation",
}
"""Linear layers of a block: name in a checkpoint to name here, each after the prefix `blocks.N.`."""


def from_dit(state: Mapping[str, Any], like: Params, steps: int = 1000) -> Params:
    """Converts a DiT checkpoint for a network with `time_scale=steps`; t = 1 - (i + 1) / steps is DiT's step i.

    Args:
        state: the state dict (`read_state_dict`).
        like: the parameters of the network, or their shapes.
        steps: N, the number of steps of the chain on which the network was trained.

    Returns:
        Parameters with the structure and dtypes of `like`.

    Raises:
        WeightsError: if the checkpoint belongs to another model.
    """
    flat = _convert(state, flatten(like))
    check(like, flat)
    flat["time1.kernel"] = reverse_time(flat["time1.kernel"], steps)
    return fill(like, flat)


def from_sit(state: Mapping[str, Any], like: Params) -> Params:
    """Converts a SiT checkpoint for a network with `time_scale=1`; the time t is the same in both.

    SiT networks have twice the channels in the output, of which the second half is never used. It is left out if the
    network here has only the first half (`outputs=1`).

    Args:
        state: the state dict (`read_state_dict`).
        like: the parameters of the network, or their shapes.

    Returns:
        Parameters with the structure and dtypes of `like`.

    Raises:
        WeightsError: if the checkpoint belongs to another model.
    """
    wanted = flatten(like)
    flat = _convert(state, wanted)
    pixels, used = (
        wanted["stem.kernel"].shape[0],
        np.shape(wanted["out.bias"])[0],
    )  # p * p * channels of each
    twice = all(np.shape(flat[name])[-1:] == (2 * pixels,) for name in ("out.kernel", "out.bias"))
    if used == pixels and twice and flat["stem.kernel"].shape[0] == pixels:
        channels = np.shape(state["x_embedder.proj.weight"])[1]
        first = lambda a: a.reshape(*a.shape[:-1], -1, 2, channels)[..., 0, :].reshape(*a.shape[:-1], pixels)
        flat |= {name: first(flat[name]) for name in ("out.kernel", "out.bias")}
    return fill(like, flat)


def reverse_time(kernel: Float[np.ndarray, "F W"], steps: int) -> Float[np.ndarray, "F W"]:
    """Returns weights that map the time features of s to the result of `kernel` for the features of steps - 1 - s.

    Args:
        kernel: first layer of the time embedding, (features, width), with the cosines before the sines.
        steps: number of steps of the chain.
    """
    half = TIME_FEATURES // 2
    # frequencies are rounded to float32, as in both networks; the rest is float64
    frequency = np.exp(-np.log(np.float32(10_000)) / half * np.arange(half, dtype=np.float32)).astype(np.float64)
    cos, sin = np.cos((steps - 1) * frequency)[:, None], np.sin((steps - 1) * frequency)[:, None]
    of_cos, of_sin = kernel[:half].astype(np.float64), kernel[half:].astype(np.float64)
    return np.concatenate([of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos]).astype(np.float32)


def _convert(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns all parameters by their names here; the number of blocks is taken from `wanted`."""
    take, flat = Taken(state), {}
    depth = len({name.split(".")[1] for name in wanted if name.startswith("blocks.")})
    table = LINEAR | {f"blocks.{i}.{a}": f"blocks.{i}.{b}" for i in range(depth) for a, b in BLOCK.items()}
    for source, target in table.items():
        flat[f"{target}.kernel"] = take(f"{source}.weight", lambda a: a.astype(np.float32).T)
        flat[f"{target}.bias"] = take(f"{source}.bias")
    # (width, channel, row, column) to (row, column, channel, width)
    patches = lambda a: a.astype(np.float32).transpose(2, 3, 1, 0).reshape(-1, a.shape[0])
    flat["stem.kernel"], flat["stem.bias"] = take("x_embedder.proj.weight", patches), take("x_embedder.proj.bias")
    if "encoders.label.table" in wanted:
        flat["encoders.label.table"] = take("y_embedder.embedding_table.weight")
    _check_positions(take("pos_embed"), wanted["stem.bias"].shape[0])
    take.finish()
    return flat


def _check_positions(table: np.ndarray, width: int) -> None:
    """Checks that `pos_embed`, (1, tokens, width), is the fixed sinusoidal embedding."""
    side = round(np.size(table) ** 0.5 / width**0.5)
    fits = side > 0 and table.shape == (1, side**2, width)
    if not fits or not np.abs(table[0].astype(np.float32) - positions(side, side, width)).max() <= 1e-2:
        raise WeightsError(
            "these weights belong to another model: pos_embed is not the fixed sinusoidal embedding of a square grid"
        )
