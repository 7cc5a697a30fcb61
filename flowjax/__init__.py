"""flowjax: flow matching and diffusion in JAX, every method in one algebra.

A path and a coupling say what to regress; a network's prediction, read through the path, names both ends of the path
at (t, x); from the ends come velocity, score, noise and data; a velocity can be integrated, scored and guided.
Submodules load on first use, so that importing flowjax is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowjax import (
        abilities,
        bits,
        conditional_flow,
        couplings,
        data,
        free_energy,
        guidance,
        inference,
        interop,
        likelihood,
        methods,
        metrics,
        models,
        notebook,
        oracles,
        paths,
        plots,
        predictions,
        reproduce,
        reschedule,
        schedules,
        simulators,
        solvers,
        sources,
        spaces,
        training,
        transport,
    )
    from flowjax.conditional_flow import sample_location_and_conditional_flow
    from flowjax.inference.run import Run, load
    from flowjax.runs import train

__version__ = "0.1.0"

_OBJECTS = {
    "Run": "flowjax.inference.run",
    "load": "flowjax.inference.run",
    "train": "flowjax.runs",
    "sample_location_and_conditional_flow": "flowjax.conditional_flow",
}

__all__ = [
    "Run",
    "abilities",
    "bits",
    "conditional_flow",
    "couplings",
    "data",
    "free_energy",
    "guidance",
    "inference",
    "interop",
    "likelihood",
    "load",
    "methods",
    "metrics",
    "models",
    "notebook",
    "oracles",
    "paths",
    "plots",
    "predictions",
    "reproduce",
    "reschedule",
    "sample_location_and_conditional_flow",
    "schedules",
    "simulators",
    "solvers",
    "sources",
    "spaces",
    "train",
    "training",
    "transport",
]


def __getattr__(name: str) -> Any:
    if name in _OBJECTS:
        return getattr(importlib.import_module(_OBJECTS[name]), name)
    if name in __all__:
        return importlib.import_module(f"flowjax.{name}")
    raise AttributeError(f"module 'flowjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
