"""Converts torchcfm's U-Net (`torchcfm.models.unet.UNetModelWrapper`) to parameters of `models.adm.ADM`.

torchcfm's code follows ADM (Dhariwal and Nichol 2021, arXiv:2105.05233). It numbers all blocks on the way down in one
list and all blocks on the way up in another, including the down- and upsampling convolutions; here each level has a
list. Kernels are (out, in, row, column) there and (row, column, in, out) here. The 3 C outputs of its "legacy"
attention are ordered (head, q/k/v, width), and here (q/k/v, head, width); `legacy=False` is for networks trained with
`use_new_attention_order=True`. A state dict holds neither this order nor the number of attention heads, and the same
tensors with another number of heads are another network, so the number or the width of the heads must be given. A
different number of heads on the way up (`num_heads_upsample`) is not supported.

Time is as here: t = 0 is noise and t = 1 is data. The network predicts the velocity of images in [-1, 1].
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from flowjax.errors import WeightsError
from flowjax.interop.tree import Taken, fill, flatten
from flowjax.typing import Params

__all__ = ["BLOCK", "ENDS", "from_torchcfm", "layers"]

BLOCK = {
    "in_layers.0": ("norm1", "norm"),
    "in_layers.2": ("conv1", "conv"),
    "emb_layers.1": ("embed", "linear"),
    "out_layers.0": ("norm2", "norm"),
    "out_layers.3": ("conv2", "conv"),
}
"""Layers of a residual block: name in torchcfm to name here and kind. A `skip_connection` becomes `skip`."""

ENDS = {
    "time_embed.0": ("time1", "linear"),
    "time_embed.2": ("time2", "linear"),
    "input_blocks.0.0": ("stem", "conv"),
    "out.0": ("norm", "norm"),
    "out.2": ("out", "conv"),
}
"""Layers before and after the blocks."""


def from_torchcfm(
    state: Mapping[str, Any], like: Params, head_width: int = 0, legacy: bool = True, heads: int = 0
) -> Params:
    """Converts a torchcfm checkpoint for an `ADM` with the same multipliers, blocks, attention, heads and `film`.

    Exactly one of `head_width` and `heads` must be given, as in training; the other is 0.

    Args:
        state: the state dict (`read_state_dict`).
        like: the parameters of the network, or their shapes.
        head_width: channels per attention head: torchcfm's `num_head_channels`, unless that is -1.
        legacy: whether the attention outputs are ordered (head, q/k/v, width).
        heads: number of attention heads per layer: torchcfm's `num_heads`, if `num_head_channels` is -1.

    Returns:
        Parameters with the structure and dtypes of `like`. torchcfm has no embedding for "no label"; in a network with
        classes it is set to zero.

    Raises:
        WeightsError: if the checkpoint belongs to another model, or to one that ADM cannot represent, or if neither or
            both of `head_width` and `heads` are given.
    """
    if (head_width > 0) == (heads > 0):
        raise WeightsError(
            "a torchcfm checkpoint does not hold its number of attention heads: give either head_width "
            "(num_head_channels, 64 in the published CIFAR-10 networks) or heads (num_heads, where num_head_channels "
            "is -1)"
        )
    wanted = flatten(like)
    table = layers(wanted)
    take, flat = Taken(state), {}
    for source, (target, kind) in table.items():
        weight = _weight(kind, head_width, heads, legacy)
        bias = _bias(kind, head_width, heads, legacy)
        flat[f"{target}.{'scale' if kind == 'norm' else 'kernel'}"] = take(f"{source}.weight", weight)
        flat[f"{target}.bias"] = take(f"{source}.bias", bias)
    if "encoders.label.table" in wanted:
        flat["encoders.label.table"] = take("label_emb.weight", lambda a: np.concatenate([a, np.zeros_like(a[:1])]))
    if "encoders.augment.linear.kernel" in wanted:
        raise WeightsError("torchcfm networks take no augmentation labels: data.augment must not be 'edm'")
    take.finish()
    return fill(like, flat)


def layers(wanted: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Maps each torchcfm layer to its name and kind here, for a network with the flat parameters `wanted`."""
    table = dict(ENDS)

    def stage(source: str, target: str) -> int:
        """Adds a residual block and its attention; returns the number of torchcfm modules."""
        table.update({f"{source}.0.{a}": (f"{target}.block.{b}", kind) for a, (b, kind) in BLOCK.items()})
        if f"{target}.block.skip.kernel" in wanted:
            table[f"{source}.0.skip_connection"] = (f"{target}.block.skip", "conv")
        if f"{target}.attention.qkv.kernel" not in wanted:
            return 1
        attention(f"{source}.1", target)
        return 2

    def attention(source: str, target: str) -> None:
        table[f"{source}.norm"] = (f"{target}.attention.norm", "norm")
        table[f"{source}.qkv"] = (f"{target}.attention.qkv", "qkv")
        table[f"{source}.proj_out"] = (f"{target}.attention.out", "linear")

    n = 1
    for i, blocks in enumerate(_levels(wanted, "down")):
        if i:
            table[f"input_blocks.{n}.0.op"] = (f"downs.{i - 1}", "conv")
            n += 1
        for j in range(blocks):
            stage(f"input_blocks.{n}", f"down.{i}.{j}")
            n += 1
    for i, middle in ((0, "middle1"), (2, "middle2")):
        table.update({f"middle_block.{i}.{a}": (f"{middle}.block.{b}", kind) for a, (b, kind) in BLOCK.items()})
    attention("middle_block.1", "middle1")
    n = 0
    for i, blocks in enumerate(_levels(wanted, "up")):
        for j in range(blocks):
            used = stage(f"output_blocks.{n}", f"up.{i}.{j}")
            if j == blocks - 1 and f"ups.{i}.kernel" in wanted:
                table[f"output_blocks.{n}.{used}.conv"] = (f"ups.{i}", "conv")
            n += 1
    return table


def _levels(wanted: Mapping[str, Any], side: str) -> list[int]:
    """The number of blocks per level of `down` or `up`."""
    places = {tuple(map(int, name.split(".")[1:3])) for name in wanted if name.startswith(f"{side}.")}
    return [sum(level == i for level, _ in places) for i in range(len({level for level, _ in places}))]


def _weight(kind: str, head_width: int, heads: int, legacy: bool) -> Any:
    """Transposes (out, in, ...) to (..., in, out) and drops the spatial axis of the 1 x 1 convolutions of attention."""
    if kind == "norm":
        return lambda a: a
    if kind == "conv":
        return lambda a: a.transpose(2, 3, 1, 0)
    if kind == "qkv":
        return lambda a: _ordered(a.reshape(a.shape[:2]).T, head_width, heads, legacy)
    return lambda a: a.reshape(a.shape[:2]).T


def _bias(kind: str, head_width: int, heads: int, legacy: bool) -> Any:
    return (lambda a: _ordered(a, head_width, heads, legacy)) if kind == "qkv" else lambda a: a


def _ordered(a: Float[np.ndarray, "*in D"], head_width: int, heads: int, legacy: bool) -> Float[np.ndarray, "*in D"]:
    """Reorders the last axis from (head, 3, width) to (3, head, width)."""
    width = head_width or a.shape[-1] // (3 * heads)
    return a.reshape(*a.shape[:-1], -1, 3, width).swapaxes(-3, -2).reshape(a.shape) if legacy else a
