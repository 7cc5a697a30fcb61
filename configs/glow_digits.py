"""scikit-learn's 8 x 8 digits by class with Glow (Kingma & Dhariwal 2018): exact likelihood in one evaluation.

TO MEASURE
"""

from flowjax.config import defaults


def get_config():
    config = defaults(method="normalizing_flow")
    config.method.flow = "glow"
    config.method.layers = 6
    config.method.width = 64
    config.data.name = "digits"
    config.data.cond = ("label",)
    config.train.steps = 1_500
    config.train.batch_size = 128
    config.train.lr = 1e-3
    config.train.warmup = 100.0 * config.train.batch_size
    config.train.log_every = 100
    config.train.save_every = 250
    return config
