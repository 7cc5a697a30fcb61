"""8 Gaussians by reflow, for few steps: `flowjax reflow --config reflow_gaussians8 --workdir runs/reflow --rounds 2`."""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp")
    config.data.name = "gaussians8"
    config.model.width = 64
    config.train.steps = 5_000
    config.train.batch_size = 1024
    config.train.lr = 4e-3
    config.train.warmup = 500.0 * config.train.batch_size
    config.train.log_every = 500
    config.train.save_every = 1000
    return config
