"""SF2M, moons to 8 Gaussians: a Schroedinger bridge with a velocity and a score head (Tong et al. 2024).

Expect: MEASURE
"""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp")
    config.data.name = "gaussians8"
    config.source.name = "moons"
    config.path.noise = "bridge(1)"
    config.coupling.name = "sinkhorn"  # at eps = 2 sigma^2, as the bridge says
    config.prediction = "velocity_score"
    config.model.width = 128
    config.train.steps = 4_000
    config.train.batch_size = 256
    config.train.lr = 2e-3
    config.train.warmup = 200
    config.train.log_every = 500
    return config
