"""The variance-exploding score SDE on 8 Gaussians: denoising score matching, predictor-corrector (Song et al. 2021).

Expect: MEASURE
"""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp")
    config.data.name = "gaussians8"
    config.path.schedule = "ve(0.01, 50)"
    config.prediction = "noise"  # -sigma score, as the networks there are scaled
    config.model.width = 128
    config.train.steps = 8_000
    config.train.batch_size = 512
    config.train.lr = 2e-3
    config.train.warmup = 500
    config.train.log_every = 500
    return config
