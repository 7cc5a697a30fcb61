"""Whether fused GPU kernels are used.

A fused kernel brings its own reverse-mode rule, which JAX does not differentiate forwards. Code that needs forward mode
(`jax.jvp`, `jax.linearize`) calls the network with `forward_mode=True`, and gets plain XLA operations.
"""

import jax

__all__ = ["available", "serve"]


def serve(forward_mode: bool = False) -> bool:
    """Whether fused kernels are used: where there are any, unless forward mode is needed."""
    return not forward_mode and available()


def available() -> bool:
    """Whether this is an NVIDIA GPU of compute capability 8 (Ampere) or newer."""
    return jax.default_backend() == "gpu" and _capability() >= 8.0


def _capability() -> float:
    try:
        return float(getattr(jax.devices()[0], "compute_capability", 0))
    except (TypeError, ValueError):  # AMD's are names
        return 0.0
