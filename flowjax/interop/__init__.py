"""Import and export of weights: PyTorch and safetensors files, and the networks of torchcfm, DiT and SiT.

Submodules are imported on first use. Reading a file of another project runs none of its code and needs none of its
packages.
"""

import importlib
from typing import TYPE_CHECKING, Any

from flowjax.errors import WeightsError

if TYPE_CHECKING:
    from flowjax.interop.dit import from_dit, from_sit
    from flowjax.interop.torch_file import read_state_dict, read_torch
    from flowjax.interop.torchcfm import from_torchcfm
    from flowjax.interop.weights import Weights, export_run, load_weights, open_weights, save_weights


_OBJECTS = {
    "Weights": "weights",
    "export_run": "weights",
    "from_dit": "dit",
    "from_sit": "dit",
    "from_torchcfm": "torchcfm",
    "load_weights": "weights",
    "open_weights": "weights",
    "read_state_dict": "torch_file",
    "read_torch": "torch_file",
    "save_weights": "weights",
}

__all__ = [
    "Weights",
    "WeightsError",
    "export_run",
    "from_dit",
    "from_sit",
    "from_torchcfm",
    "load_weights",
    "open_weights",
    "read_state_dict",
    "read_torch",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    if name in _OBJECTS:
        return getattr(importlib.import_module(f"flowjax.interop.{_OBJECTS[name]}"), name)
    raise AttributeError(f"module 'flowjax.interop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
