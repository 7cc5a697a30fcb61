"""Whether fused GPU kernels serve here and now.

A fused kernel brings its own reverse-mode rule, which JAX does not differentiate forwards; code that needs forward mode
(`jax.jvp`, `jax.linearize`) traces the network inside `forward_mode()`, and gets plain XLA operations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

__all__ = ["available", "forward_mode", "serve"]

_forward_mode: ContextVar[bool] = ContextVar("forward_mode", default=False)


@contextmanager
def forward_mode() -> Iterator[None]:
    """While tracing inside it, networks are differentiable in forward mode too."""
    token = _forward_mode.set(True)
    try:
        yield
    finally:
        _forward_mode.reset(token)


def serve(forward_mode: bool = False) -> bool:
    """Whether fused kernels are used: where there are any, unless forward mode is needed."""
    return not forward_mode and not _forward_mode.get() and available()


def available() -> bool:
    """Whether this is an NVIDIA GPU of compute capability 8 (Ampere) or newer."""
    return jax.default_backend() == "gpu" and _capability() >= 8.0


def _capability() -> float:
    try:
        return float(getattr(jax.devices()[0], "compute_capability", 0))
    except (TypeError, ValueError):  # AMD's are names
        return 0.0
