"""From one set of images to another without pairs: digits 0 to 4 become digits 5 to 9, paired by optimal transport."""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp")
    config.data.name = "digits((5,6,7,8,9))"
    config.source.name = "digits((0,1,2,3,4))"
    config.coupling.name = "ot"
    config.model.width = 512
    config.train.steps = 1000
    config.train.batch_size = 256
    config.train.lr = 1e-3
    config.train.warmup = 100.0 * config.train.batch_size
    config.train.log_every = 100
    config.train.save_every = 1000
    config.ema.half_life = 10_000.0
    return config
