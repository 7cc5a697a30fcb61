"""The posterior of SLCP (simple likelihood, complex posterior) from 10,000 simulations.

PLACEHOLDER
"""

from flowjax.config import defaults


def get_config():
    config = defaults("resmlp")
    config.data.name = "simulator(num=10000)"
    config.data.simulator = "slcp"
    config.data.cond = ("obs(dropout=0, encoder='mlp')",)
    config.model.width = 128
    config.model.depth = 4
    config.model.dropout = 0.1
    config.train.steps = 6000
    config.train.optimizer = "adamw"
    config.train.weight_decay = 1.0
    config.train.log_every = 500
    return config
