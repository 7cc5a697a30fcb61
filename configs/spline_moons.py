"""Two moons by couplings of rational-quadratic splines, trained by maximum likelihood (Durkan et al. 2019).

TO MEASURE
"""

from flowjax.config import defaults


def get_config():
    config = defaults(method="normalizing_flow")
    config.method.flow = "spline"
    config.method.layers = 4
    config.data.name = "moons"
    config.train.steps = 3_000
    config.train.batch_size = 512
    config.train.lr = 2e-3
    config.train.warmup = 200.0 * config.train.batch_size
    config.train.log_every = 500
    return config
