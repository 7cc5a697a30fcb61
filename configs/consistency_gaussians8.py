"""8 Gaussians in one step: consistency training from scratch (Song & Dhariwal 2023)."""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp", method="consistency")
    config.data.name = "gaussians8"
    config.method.times = "uniform"
    config.method.first = 10
    config.method.last = 640
    config.method.doubling = 1_000
    config.model.width = 128
    config.train.steps = 7_000
    config.train.batch_size = 1024
    config.train.lr = 2e-3
    config.train.warmup = 500.0 * config.train.batch_size
    config.train.log_every = 500
    return config
