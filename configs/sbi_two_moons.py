"""The posterior of two moons, a task of simulation-based inference, from 10,000 simulations.

PLACEHOLDER
"""

from flowjax.config import defaults


def get_config():
    config = defaults("resmlp")
    config.data.name = "simulator(num=10000)"
    config.data.simulator = "two_moons"
    config.data.cond = ("obs(dropout=0, encoder='mlp')",)
    config.model.width = 128
    config.model.depth = 4
    config.train.steps = 4000
    config.train.log_every = 500
    return config
