"""8 Gaussians from a normal: the main job."""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp")
    config.data.name = "gaussians8"
    config.model.width = 64
    config.train.steps = 7_000
    config.train.batch_size = 1024
    config.train.lr = 4e-3
    config.train.warmup = 500
    config.train.log_every = 500
    config.train.save_every = 1000
    return config
