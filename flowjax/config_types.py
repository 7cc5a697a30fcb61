"""The keys of a config as a type checker sees them.

At run time a config is an `ml_collections.ConfigDict`, whose keys `flowjax.config.resolve` checks. These classes are
never instantiated. They declare the keys for a type checker, which then reports `config.train.stepz` as an error. A
test compares them with `flowjax.config.defaults`.
"""

from collections.abc import ItemsView
from typing import Any

__all__ = [
    "Config",
    "CouplingKeys",
    "DataKeys",
    "EMAKeys",
    "MeshKeys",
    "OpenKeys",
    "PathKeys",
    "Section",
    "SourceKeys",
    "TrainKeys",
]


class Section:
    """The methods that a config and its sections share, for access to keys by their names."""

    def __getitem__(self, key: str) -> Any: ...

    def __setitem__(self, key: str, value: Any) -> None: ...

    def __contains__(self, key: object) -> bool: ...

    def get(self, key: str, default: Any = None) -> Any: ...

    def items(self) -> ItemsView[str, Any]: ...

    def to_dict(self) -> dict[str, Any]: ...


class OpenKeys(Section):
    """A section whose other keys depend on its `name`: the section of a network or of a method."""

    name: str

    def __getattr__(self, key: str) -> Any: ...

    def __setattr__(self, key: str, value: Any) -> None: ...


class SourceKeys(Section):
    name: str


class PathKeys(Section):
    name: str
    schedule: str
    shift: float
    noise: str


class CouplingKeys(Section):
    name: str


class DataKeys(Section):
    name: str
    path: str
    cond: tuple[str, ...]
    cond_dropout: float
    pairs: str
    normalise: str
    augment: str
    workers: int


class TrainKeys(Section):
    steps: int
    batch_size: int
    accumulate: int
    optimizer: str
    lr: float
    beta2: float
    momentum: float
    weight_decay: float
    warmup: float
    schedule: str
    clip: float
    spike: float
    loop: str
    peak_tflops: float
    log_every: int
    save_every: int
    keep_last: int
    keep_every: int
    keep_at: tuple[int, ...]


class EMAKeys(Section):
    half_life: float
    widths: tuple[float, ...]
    snapshots: int


class MeshKeys(Section):
    data: int
    fsdp: int
    tensor: int
    rules: tuple[str, ...]


class Config(Section):
    """A full config. `source`, `path`, `coupling`, `prediction` and `model` exist only if the method reads them."""

    seed: int
    method: OpenKeys
    source: SourceKeys
    path: PathKeys
    coupling: CouplingKeys
    prediction: str
    model: OpenKeys
    data: DataKeys
    train: TrainKeys
    ema: EMAKeys
    mesh: MeshKeys
