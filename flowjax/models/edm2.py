"""The magnitude-preserving U-Net of EDM2, configuration G (Karras et al. 2024, arXiv:2312.02696, figure 21 and
appendix B).

All layers preserve the magnitude of activations (`models.magnitude`). There are no group norms and no biases, and the
only learned scales are one gain per block for the embedding and one for the output. With 128 channels, multipliers
(1, 2, 3, 4), 3 blocks and attention at heights 16 and 8, on 64 x 64 x 4 latents of 1000 classes, the network is
EDM2-XS; with 192 channels it is EDM2-S.

Inputs and targets should have mean square 1; the prediction scales them, not the network. Train with
`training.optimizers.normalise_weights` after the optimizer, at a learning rate near 1e-2 that decays as
1 / sqrt(step), without weight decay. There are two differences from the paper. A missing label has a learned vector
instead of zero, so that its embedding has the same magnitude as all others. Activations are not clipped at 256, which
the paper needs for float16.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field, check
from flowjax.errors import check_name
from flowjax.keys import RowKeys, row_keys
from flowjax.model_defaults import MODEL_DEFAULTS
from flowjax.models.embeddings import batch_time, refuse_mask, refuse_two_times, times_of
from flowjax.models.encoders import beside, check_fields, encode, encoders_of, extra_channels
from flowjax.models.layers import DTYPES, REMAT, remat, split_keys
from flowjax.models.magnitude import MPConv, MPLinear, fourier, mp_silu, mp_sum
from flowjax.models.magnitude_blocks import Decoder, Encoder
from flowjax.models.magnitude_encoders import MP_ENCODERS
from flowjax.precision import at_least_float32
from flowjax.typing import Cond, PRNGKey

__all__ = ["EDM2", "LABEL_BALANCE", "TIMES", "noise_level"]

LABEL_BALANCE = 0.5
"""The weight t of the first condition in its `mp_sum` with the embedding of the noise level."""

TIMES = ("log_snr", "linear")
"""The possible values of `time`, for `noise_level`."""


def noise_level(t: Float[Array, " B"], time: str) -> Float[Array, " B"]:
    """Returns the noise level that the network receives, from 2 (pure noise) to -2 (no noise), (B,).

    `log_snr` is log((1 - t) / t) / 4, clipped to [-2, 2]. This is log(sigma) / 4 of EDM on the straight path, where
    sigma = (1 - t) / t. The bounds are sigma = e^8 and e^-8 = 3e-4 (a twentieth of a grey level), and the noise level
    is constant beyond them. Its derivative, -1 / (4 t (1 - t)), reaches -745 at the bounds. `linear` is 2 - 4 t; use it
    for schedules whose noise is not (1 - t) / t, and for losses that differentiate with respect to t.
    """
    if time == "linear":
        return 2 - 4 * t
    safe = jnp.clip(t, 1e-5, 1 - 1e-5)  # gradients of the unused branch must be finite
    return jnp.clip((jnp.log1p(-safe) - jnp.log(safe)) / 4, -2.0, 2.0)


_DEFAULTS = MODEL_DEFAULTS["edm2"]


class EDM2(nnx.Module):
    """The magnitude-preserving U-Net of EDM2.

    Args:
        shape: (H, W, C) of one image. H and W must be multiples of 2^(levels - 1).
        channels: number of channels at full resolution.
        multipliers: number of channels of each level divided by `channels`. Each level after the first halves the
            resolution.
        blocks: number of residual blocks per level.
        attention: heights of the feature maps with attention; the middle block always has attention.
        head_width: number of channels of each attention head.
        dropout: dropout rate inside each residual block. Dropout is applied only if the call passes a key.
        time: how t becomes a noise level, `log_snr` or `linear` (`noise_level`).
        time_scale: factor on the noise level before its Fourier features.
        fields: the conditions, whose kinds must be in `encoders.TAKES`.
        two_times: must be False, because this network takes one time.
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

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: int = _DEFAULTS["channels"],
        multipliers: tuple[int, ...] = _DEFAULTS["multipliers"],
        blocks: int = _DEFAULTS["blocks"],
        attention: tuple[int, ...] = _DEFAULTS["attention"],
        head_width: int = _DEFAULTS["head_width"],
        dropout: float = _DEFAULTS["dropout"],
        time: str = _DEFAULTS["time"],
        time_scale: float = _DEFAULTS["time_scale"],
        fields: tuple[Field, ...] = (),
        two_times: bool = False,
        outputs: int = 1,
        dtype: str = _DEFAULTS["dtype"],
        remat: str = _DEFAULTS["remat"],
        rngs: nnx.Rngs,
    ):
        height, width, c = shape
        halvings = 2 ** (len(multipliers) - 1)
        if height % halvings or width % halvings:
            raise ValueError(f"{len(multipliers)} levels need images whose sides {halvings} divides, not {shape[:2]}")
        check_fields("edm2", fields, shape)
        refuse_two_times("edm2", two_times)
        for what, name, known in (("time", time, TIMES), ("dtype", dtype, DTYPES), ("remat", remat, REMAT)):
            check_name(what, name, known)
        self.dtype, self.remat, self.features = DTYPES[dtype], remat, channels
        self.time, self.time_scale = time, time_scale
        widths = [channels * m for m in multipliers]
        heads = [head_width if height // 2**i in attention else 0 for i in range(len(widths))]
        e = max(widths)
        self.noise = MPLinear(channels, e, rngs=rngs)
        self.fields = fields
        self.encoders = nnx.data(encoders_of(fields, e, table=MP_ENCODERS, rngs=rngs))
        self.stem = MPConv(c + extra_channels(fields) + 1, channels, rngs=rngs)
        enc, skips, now = [], [channels], channels
        for i, w in enumerate(widths):
            if i:
                enc.append(Encoder(now, now, e, dropout, 0, down=True, rngs=rngs))
                skips.append(now)
            for _ in range(blocks):
                enc.append(Encoder(now, w, e, dropout, heads[i], rngs=rngs))
                now = w
                skips.append(now)
        dec = [Decoder(now, 0, now, e, dropout, width, rngs=rngs) for width in (head_width, 0)]
        for i, w in reversed(list(enumerate(widths))):
            if i < len(widths) - 1:
                dec.append(Decoder(now, 0, now, e, dropout, 0, up=True, rngs=rngs))
            for _ in range(blocks + 1):
                dec.append(Decoder(now, skips.pop(), w, e, dropout, heads[i], rngs=rngs))
                now = w
        self.enc, self.dec = nnx.List(enc), nnx.List(dec)
        self.out = MPConv(now, outputs * c, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros(()))

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
            s: must be None, because this network takes one time.
            mask: must be None, because networks of images take no mask.
            key: key of the dropout, one for the batch or one per row; None to apply no dropout.
            forward_mode: whether to use only operations that JAX differentiates in forward mode.

        Raises:
            ValueError: if a condition is not one of `fields`, if a mask is given, or if `s` does not fit `two_times`.
        """
        refuse_mask(mask)
        times_of(batch_time(t, x), s, two_times=False)
        cond = check(cond, self.fields)
        embedding = self._embed(batch_time(t, x), cond)
        blocks = len(self.enc) + len(self.dec)
        keys = iter(split_keys(row_keys(key, x.shape[0]), blocks))
        run = lambda block, h, key: remat(self.remat, lambda *args: block(*args, key, forward_mode))(h, embedding)
        h = beside(x.astype(self.dtype), self.fields, cond)
        # the network has no biases; a channel of ones replaces them (Karras et al. 2024)
        h = self.stem(jnp.pad(h, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1))
        skips = [h]
        for block in self.enc:
            h = run(block, h, next(keys))
            skips.append(h)
        for block in self.dec:
            h = run(block, (h, skips.pop()) if block.joins else (h,), next(keys))
        return at_least_float32(self.out(h, gain=self.gain[...]))

    def _embed(self, t: Float[Array, " B"], cond: Mapping[str, Array]) -> Float[Array, "B E"]:
        """Returns mp_silu of the embedding of the noise level and the conditions, in float32.

        The noise level and each condition have equal weights in the sum. Vectors whose null value is 0 are instead
        added with a learned gain, which is initialised to zero.
        """
        e = self.noise(fourier(noise_level(t, self.time) * self.time_scale, self.features))
        rows, added = t.shape[0], 0
        for field in self.fields:
            if field.kind == "image":
                continue
            [encoded] = encode(self.encoders, [field], cond, rows) or [None]
            if field.kind == "vector" and field.zero_is_null:
                e = e if encoded is None else e + encoded
                continue
            assert encoded is not None
            added += 1
            e = mp_sum(e, encoded, LABEL_BALANCE if added == 1 else 1 / (1 + math.sqrt(added)))
        return mp_silu(e)
