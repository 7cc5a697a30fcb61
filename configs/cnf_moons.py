"""Two moons by a continuous normalizing flow: maximum likelihood (FFJORD) with regularisation (Finlay et al. 2020).

Expect, measured with seed 0: KL(true, model) 0.0195 (standard error 0.0012) on 20,000 fresh points; W2 squared 0.1183,
against 0.1065 between two true samples. 5.9 minutes of training on one CPU core that other jobs used as well.
Steps are adaptive: with too few fixed steps the loss is wrong (docs/howto/likelihood.md).
"""

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
