"""Masks of couplings: which coordinates a coupling keeps. Two masks of opposite parity are complementary."""

import math

import numpy as np

__all__ = ["alternating", "channels", "checkerboard"]


def alternating(shape: tuple[int, ...], parity: int = 0) -> np.ndarray:
    """Keeps every other coordinate, in the order of the flattened array: the even ones for parity 1."""
    return (np.arange(math.prod(shape)) % 2 != parity % 2).reshape(shape)


def checkerboard(shape: tuple[int, ...], parity: int = 0) -> np.ndarray:
    """Keeps every other pixel of images (H, W, C), with all its channels (Dinh et al. 2017, arXiv:1605.08803)."""
    rows, columns = np.indices(shape[:2])
    return np.broadcast_to(((rows + columns) % 2 != parity % 2)[..., None], shape).copy()


def channels(shape: tuple[int, ...], parity: int = 0) -> np.ndarray:
    """Keeps the first half of the channels (*space, C) for parity 0, and the second half for parity 1."""
    first = np.arange(shape[-1]) < shape[-1] // 2
    return np.broadcast_to(first if parity % 2 == 0 else ~first, shape).copy()
