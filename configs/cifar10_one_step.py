"""CIFAR-10 in one or two steps: consistency tuning of a flow that `cifar10_hour` or `cifar10_speedrun` has trained.

The run to start from is named by a flag, as this config only tunes it:

    flowjax train --config cifar10_one_step --config.train.start_from=runs/flow --workdir runs/one

The second time of a pair is s + (1 - s) / n, and n is doubled from 8 to 256 (Geng et al. 2024, arXiv:2406.14548). The
network computes in float16, because the two outputs of a pair differ by less than the rounding of bfloat16.

Measured on an H200, seed 0, from a flow of 9,200 steps: FID of 50,000 samples 17.3 with one evaluation and 9.0 with
two, after 4.1M images in 595 s. `experiments/cifar10_one_step` trains both stages, and has the log of all runs.
"""

from flowjax.config import defaults


def get_config():
    config = defaults("adm", method="consistency")
    config.data.name = "cifar10"
    config.data.augment = "flip"
    config.method.times = (
        "uniform"  # more rows near pure noise, where one-step samples start, than log_normal(-1.1, 2.0)
    )
    config.method.spacing = "remaining"
    config.method.first = 8
    config.method.last = 256
    config.method.doubling = 667
    config.model.film = True  # the network of `cifar10_hour`, with its dropout
    config.model.dropout = 0.1
    config.model.time_scale = 1000.0
    config.model.dtype = "float16"
    config.train.loss_scale = 4096.0
    config.train.steps = 4_000
    config.train.batch_size = 1024
    config.train.lr = 3e-4
    config.train.beta2 = 0.99
    config.train.warmup = 100_000.0
    config.train.log_every = 333
    config.train.save_every = 4_000
    config.ema.half_life = 500_000.0
    return config
