"""The keys of the built-in networks and their defaults, for configs and constructors."""

from typing import Any

__all__ = ["MODEL_DEFAULTS"]

MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "mlp": {"width": 128, "depth": 3, "features": 16, "activation": "silu"},
    "resmlp": {"width": 256, "depth": 4, "expansion": 2, "features": 16, "dropout": 0.0, "dtype": "float32"},
    "transformer": {
        "depth": 6,
        "width": 256,
        "heads": 4,
        "positions": "rotary",
        "features": 16,
        "dropout": 0.0,
        "dtype": "float32",
        "remat": "none",
    },
    "unet1d": {"channels": 64, "multipliers": (1, 2, 2), "blocks": 2, "heads": 4},
    "unet": {"channels": 64, "multipliers": (1, 2, 2), "blocks": 2, "patch": 1, "heads": 4},
    "adm": {
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 2,
        "attention": (16,),
        "head_width": 64,
        "heads": 0,
        "film": False,
        "dropout": 0.1,
        "time_scale": 1.0,
        "dtype": "bfloat16",
        "remat": "none",
    },
    "edm2": {
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 2,
        "attention": (16,),
        "head_width": 64,
        "dropout": 0.0,
        "time": "log_snr",
        "time_scale": 1.0,
        "dtype": "bfloat16",
        "remat": "none",
    },
    "dit": {
        "patch": 2,
        "depth": 12,
        "width": 384,
        "heads": 6,
        "qk_norm": False,
        "dropout": 0.0,
        "time_scale": 1000.0,
        "dtype": "bfloat16",
        "remat": "none",
    },
}
"""The keys of each network with their defaults: keyword arguments of its constructor."""
