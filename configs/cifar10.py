"""Unconditional CIFAR-10, the long recipe: 50M images, EDM's augmentation, dropout. Not yet run.

Written for one H200 (80 minutes at the rate of `cifar10_hour`) and, with the same total batch, for eight. Its
snapshots of averages, 64 of two widths in float16, take about 10 GB in the workdir.
"""

from flowjax.config import defaults


def get_config():
    config = defaults("adm")
    config.data.name = "cifar10"
    config.data.augment = "edm(0.12)"
    config.method.times = "log_normal(-1.2, 1.2)"
    config.model.film = True
    config.model.dropout = 0.13
    config.model.time_scale = 1000.0
    config.train.steps = 48_832
    config.train.batch_size = 1024
    config.train.optimizer = "muon"
    config.train.lr = 2.5e-3
    config.train.beta2 = 0.99
    config.train.warmup = 500_000.0
    config.train.schedule = "linear(0.3)"
    config.train.spike = 4.0
    config.train.log_every = 500
    config.train.save_every = 5_000
    config.ema.half_life = 500_000.0
    config.ema.widths = (0.05, 0.1)
    return config
