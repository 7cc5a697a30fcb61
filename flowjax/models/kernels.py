"""The choice between fused GPU kernels and plain XLA operations.

Fused kernels have custom reverse-mode rules, which JAX cannot differentiate in forward mode. Code that needs forward
mode (`jax.jvp`, `jax.linearize`) calls the network with `forward_mode=True` to use plain XLA operations.
"""

import jax

__all__ = ["available", "serve"]


def serve(forward_mode: bool = False) -> bool:
    """Returns whether to use fused kernels: if they are available and forward mode is not needed."""
    return not forward_mode and available()


def available() -> bool:
    """Returns whether the default device is an NVIDIA GPU of compute capability 8 (Ampere) or newer."""
    return jax.default_backend() == "gpu" and _capability() >= 8.0


def _capability() -> float:
    try:
        return float(getattr(jax.devices()[0], "compute_capability", 0))
    except (TypeError, ValueError):  # on AMD GPUs the capability is a name
        return 0.0
