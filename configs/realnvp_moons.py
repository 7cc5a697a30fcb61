"""Two moons by RealNVP: affine couplings trained by maximum likelihood (Dinh et al. 2017).

Expect, measured with seed 0: see the table of the README.
"""

from flowjax.config import defaults


def get_config():
    config = defaults(method="real_nvp")
    config.data.name = "moons"
    config.train.steps = 4_000
    config.train.batch_size = 512
    config.train.lr = 1e-3
    config.train.warmup = 200.0 * config.train.batch_size
    config.train.log_every = 500
    return config
