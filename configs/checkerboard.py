"""checkerboard"""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp")
    config.data.name = "checkerboard"
    config.model.width = 128
    config.train.steps = 8_000
    config.train.batch_size = 1024
    config.train.lr = 4e-3
    config.train.warmup = 500
    config.train.log_every = 500
    config.train.save_every = 2000
    return config
