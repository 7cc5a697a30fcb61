"""Super-resolution of Fashion-MNIST: from means of blocks of 4 x 4 pixels to images of 28 x 28, by conditioning."""

from flowjax.config import defaults


def get_config():
    config = defaults("dit")
    config.data.name = "fashion_mnist"
    config.data.degrade = "downsample(4)"
    config.data.cond = ("degraded",)
    config.data.cond_dropout = 0.0
    config.path.name = "gaussian"
    config.model.patch = 4
    config.model.width = 96
    config.model.depth = 4
    config.model.heads = 4
    config.model.dtype = "float32"
    config.train.optimizer = "muon"
    config.train.steps = 500
    config.train.batch_size = 64
    config.train.lr = 1e-2
    config.train.warmup = 50.0 * config.train.batch_size
    config.train.log_every = 50
    config.train.save_every = 250
    config.ema.half_life = 3_000.0
    return config
