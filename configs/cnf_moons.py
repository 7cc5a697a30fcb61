"""Two moons by a continuous normalizing flow: maximum likelihood (FFJORD) with regularisation (Finlay et al. 2020)."""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp", method="cnf")
    config.method.solver = "tsit5"
    config.method.rtol = 1e-3
    config.method.atol = 1e-3
    config.method.kinetic = 0.01
    config.method.jacobian = 0.01
    config.data.name = "moons"
    config.model.width = 64
    config.train.steps = 1_000
    config.train.batch_size = 128
    config.train.lr = 3e-3
    config.train.warmup = 100.0 * config.train.batch_size
    config.train.log_every = 250
    return config
