"""Forecasts of the weather: a week of four variables in Seattle, given the two weeks before.

The data are daily from 2012 to 2015 (NOAA, public domain) and lie in the package vega_datasets (MIT licence, 0.2 MB):
`pip install --no-deps vega_datasets`. For a file of your own, add `--config.data.path=mine.csv` and
`--config.data.name="series(past=48, future=24)"`.

Expect, measured with seed 0: CRPS 0.447 and energy score 3.54 over the 140 test windows of the last five months,
in standard deviations of the channels; 0.622 and 4.68 by persistence, 0.602 and 4.26 by random training windows, and
0.437 and 3.55 by training windows from the same time of the year: the network finds the season, and little else. 40 s
of training on two loaded CPU cores. Rain is often exactly 0, where samples scatter and are negative at times.
"""

from importlib.util import find_spec
from pathlib import Path

from flowjax.config import defaults


def get_config():
    config = defaults("resmlp")
    config.data.name = "series(past=14, future=7, drop='weather')"
    config.data.path = shipped("vega_datasets", "seattle-weather.csv")
    config.data.cond = ("past",)
    config.data.cond_dropout = 0.0
    config.model.width = 64
    config.model.depth = 3
    config.model.dropout = 0.3  # a network of this size remembers 1,300 windows otherwise
    config.train.steps = 600
    config.train.batch_size = 256
    config.train.warmup = 100.0 * config.train.batch_size
    config.train.log_every = 100
    return config


def shipped(package: str, name: str) -> str:
    """The path of a file of a package, which is not imported; how to install the package if it is missing."""
    found = find_spec(package)
    if found is None or found.origin is None:
        return f"{name} (pip install --no-deps {package})"
    return str(Path(found.origin).parent / "_data" / name)
