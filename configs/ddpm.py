"""DDPM on scikit-learn's digits: 1,000 discrete levels, noise prediction, learned variance (Nichol & Dhariwal 2021).

Expect: MEASURE
"""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp")
    config.data.name = "digits"
    config.path.schedule = "ddpm_linear(1000)"
    config.prediction = "noise_variance"
    config.loss.name = "hybrid(1000)"
    config.model.conditional = True
    config.model.width = 512
    config.model.features = 32
    config.train.steps = 4000
    config.train.warmup = 200
    config.train.log_every = 200
    return config
