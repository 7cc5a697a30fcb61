"""The U-Net of ADM and DDPM++ (Ho et al. 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456; Dhariwal & Nichol
2021, arXiv:2105.05233).

With 128 channels, multipliers (1, 2, 2, 2), 2 blocks, attention at height 16, heads of width 64 and without `film`, it
has the same 35,746,307 parameters as the network that torchcfm trains on CIFAR-10.

The implementation reduces memory traffic. Group norm, embedding and SiLU are one pass over memory (`models.norm`).
Biases are kept apart from their feature maps until the next norm adds them. Doubling the resolution is part of the
convolution that follows it (`models.layers`). Attention is fused on hardware that supports it (`models.attention`). The
network computes in `dtype`; parameters, statistics and softmax are float32.
"""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field, check
from flowjax.errors import check_name
from flowjax.keys import RowKeys, row_keys
from flowjax.models.adm_blocks import Map, Stage, concatenated, resampled, zeros
from flowjax.models.embeddings import batch_time, refuse_mask
from flowjax.models.encoders import beside, check_fields, embed, encoders_of, extra_channels
from flowjax.models.layers import DTYPES, REMAT, Conv, remat, split_keys, uniform_init
from flowjax.models.norm import GroupNorm
from flowjax.precision import at_least_float32
from flowjax.typing import Cond, PRNGKey

__all__ = ["ADM"]


class ADM(nnx.Module):
    """The U-Net of ADM and DDPM++: residual blocks at several resolutions with skip connections.

    Args:
        shape: (H, W, C) of one image. H and W must be multiples of 2^(levels - 1).
        channels: number of channels at full resolution.
        multipliers: number of channels of each level divided by `channels`. Each level after the first halves the
            resolution.
        blocks: number of residual blocks per level.
        attention: heights of the feature maps with attention; the middle block always has attention.
        head_width: number of channels of each attention head, if `heads` is 0.
        heads: number of attention heads of every attention layer; 0 to use heads of width `head_width`.
        film: whether the embedding scales and shifts the output of the norm (ADM) or is added to its input. If
            it is added, blocks of 32 channels do not depend on it: their norm has one channel per group and removes it.
        dropout: dropout rate inside each residual block. Dropout is applied only if the call passes a key.
        time_scale: factor on t before its sinusoidal features; 1 in torchcfm, 1000 in ADM.
        fields: the conditions, whose kinds must be in `encoders.TAKES`.
        two_times: whether the network takes the time s of x beside t. The embedding of t - s is added to that of s.
        outputs: number of output images, concatenated along the last axis.
        dtype: type in which the network computes; its parameters are float32.
        remat: what each residual block with its attention keeps in memory for the backward pass: everything (`none`),
            its input (`block`), its matrix products (`dots`), or those without batch dimensions (`dots_no_batch`).
        rngs: random number generators of the initialisation.

    Raises:
        ValueError: if sizes do not divide each other, a name is unknown, or a condition is not supported.
    """

    # On CPUs, XLA has fast convolution kernels only outside loops: the gradients of a U-Net took 9.9 s per step inside
    # a loop and 0.58 s outside (batch 64 of Fashion-MNIST, 2 cores, jaxlib 0.10.2).
    slow_in_cpu_loops: ClassVar[bool] = True
    row_keys: ClassVar[bool] = True
    cast_parameters: ClassVar[str] = (
        r"^((down|up)/\d+/\d+|middle[12])/(block/conv[12]|attention/qkv)/kernel$|^downs/\d+/kernel$|^out/bias$"
    )

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        head_width: int = 64,
        heads: int = 0,
        film: bool = False,
        dropout: float = 0.1,
        time_scale: float = 1.0,
        fields: tuple[Field, ...] = (),
        two_times: bool = False,
        outputs: int = 1,
        dtype: str = "bfloat16",
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        height, width, c = shape
        halvings = 2 ** (len(multipliers) - 1)
        if height % halvings or width % halvings:
            raise ValueError(f"{len(multipliers)} levels need images whose sides {halvings} divides, not {shape[:2]}")
        if channels % 32:
            raise ValueError(f"channels must be a multiple of 32, the number of norm groups, not {channels}")
        if not film and channels * max(multipliers) == 32:
            raise ValueError(
                "adm without film needs a level of more than 32 channels: a norm with one channel per group removes "
                "the embedding of the time and the conditions; set film=True or channels=64"
            )
        check_fields("adm", fields, shape)
        check_name("dtype", dtype, DTYPES)
        check_name("remat", remat, REMAT)
        self.dtype, self.remat, self.time_scale, self.features = DTYPES[dtype], remat, time_scale, channels
        e = 4 * channels
        linear = lambda a, b: nnx.Linear(a, b, kernel_init=uniform_init(), rngs=rngs)
        self.time1, self.time2 = linear(channels, e), linear(e, e)
        self.fields, self.two_times = fields, two_times
        self.encoders = nnx.data(encoders_of(fields, e, rngs=rngs))
        self.stem = Conv(c + extra_channels(fields), channels, rngs=rngs)
        stage = lambda a, b, side: Stage(a, b, e, film, dropout, side in attention, head_width, heads, rngs=rngs)
        widths = [channels * m for m in multipliers]
        sides = [height // 2**i for i in range(len(widths))]
        down, downs, skips, now = [], [], [channels], channels
        for i, (w, side) in enumerate(zip(widths, sides, strict=True)):
            if i:
                downs.append(Conv(now, now, down=True, rngs=rngs))
                skips.append(now)
            level = []
            for _ in range(blocks):
                level.append(stage(now, w, side))
                now = w
                skips.append(now)
            down.append(nnx.List(level))
        self.down, self.downs = nnx.List(down), nnx.List(downs)
        self.middle1 = Stage(now, now, e, film, dropout, True, head_width, heads, rngs=rngs)
        self.middle2 = Stage(now, now, e, film, dropout, False, head_width, heads, rngs=rngs)
        up, ups = [], []
        for i, (w, side) in reversed(list(enumerate(zip(widths, sides, strict=True)))):
            level = []
            for _ in range(blocks + 1):
                level.append(stage(now + skips.pop(), w, side))
                now = w
            up.append(nnx.List(level))
            if i:
                ups.append(Conv(now, now, up=True, rngs=rngs))
        self.up, self.ups = nnx.List(up), nnx.List(ups)
        self.norm = GroupNorm(now, rngs=rngs)
        self.out = Conv(now, outputs * c, init=zeros, rngs=rngs)
        self.difference1 = linear(channels, e) if two_times else None
        self.difference2 = nnx.Linear(e, e, kernel_init=zeros, rngs=rngs) if two_times else None

    def __call__(
        self,
        t: Array | float,
        x: Float[Array, "B H W C"],
        cond: Cond = None,
        *,
        s: Array | float | None = None,
        mask: Array | None = None,
        key: PRNGKey | RowKeys | None = None,
        forward_mode: bool = False,
    ) -> Float[Array, "B H W D"]:
        """Returns the network's output (B, H, W, outputs * C) in float32.

        Args:
            t: time, () or (B,), in [0, 1].
            x: (B, H, W, C).
            cond: conditions by name, or None. A field that is absent counts as not given.
            s: the time of x, () or (B,), if `two_times` is True; None otherwise.
            mask: must be None, because networks of images take no mask.
            key: key of the dropout, one for the batch or one per row; None to apply no dropout.
            forward_mode: whether to use only operations that JAX differentiates in forward mode.

        Raises:
            ValueError: if a condition is not one of `fields`, if a mask is given, or if `s` does not fit `two_times`.
        """
        refuse_mask(mask)
        cond = check(cond, self.fields)
        embedding = embed(self, batch_time(t, x), s, cond)
        n = 2 + sum(len(level) for level in (*self.down, *self.up))
        keys = iter(split_keys(row_keys(key, x.shape[0]), n))
        block = lambda stage: lambda m, e, key: stage(m, e, key, forward_mode)
        run = lambda stage, m: remat(self.remat, block(stage))(m, embedding, next(keys))
        m = Map((self.stem.linear(beside(x.astype(self.dtype), self.fields, cond)),), self.stem.bias[...])
        skips = [m]
        for i, level in enumerate(self.down):
            if i:
                m = resampled(self.downs[i - 1], m, forward_mode)
                skips.append(m)
            for j, stage in enumerate(level):
                m = run(stage, m)
                if j == len(level) - 1 and i < len(self.downs):
                    m = m.settled()
                skips.append(m)
        m = run(self.middle2, run(self.middle1, m))
        for i, level in enumerate(self.up):
            for stage in level:
                m = run(stage, concatenated(m, skips.pop()))
            if i < len(self.ups):
                m = resampled(self.ups[i], m.settled(), forward_mode)
        return at_least_float32(self.out(self.norm(m.x, add=m.bias, forward_mode=forward_mode)))
