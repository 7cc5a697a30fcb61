"""Signals (L,) as sequences (L, 1), for networks of sequences."""

from jaxtyping import Array, Float

__all__ = ["as_sequence", "as_signal", "channels_of"]


def channels_of(shape: tuple[int, ...]) -> int:
    """Returns the number of channels C of an example (L, C), and 1 for a signal (L,).

    Raises:
        ValueError: if the shape has more than two axes.
    """
    if len(shape) not in (1, 2):
        raise ValueError(f"examples must be sequences (L, C) or signals (L,), not arrays of shape {shape}")
    return 1 if len(shape) == 1 else shape[1]


def as_sequence(x: Float[Array, "B *event"]) -> Float[Array, "B L C"]:
    """Returns signals (B, L) as sequences (B, L, 1), and sequences as they are."""
    return x[..., None] if x.ndim == 2 else x


def as_signal(y: Float[Array, "B L D"], x: Float[Array, "B *event"]) -> Float[Array, "B *output"]:
    """Returns the output of a network in the layout of its input x.

    Args:
        y: output for `as_sequence(x)`, with D = n C for n outputs.
        x: sequences (B, L, C) or signals (B, L).

    Returns:
        y itself for sequences; for signals the n outputs one after the other, (B, n L).
    """
    return y if x.ndim == 3 else y.swapaxes(1, 2).reshape(y.shape[0], -1)
