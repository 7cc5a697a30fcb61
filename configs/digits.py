"""scikit-learn's 8 x 8 digits, class-conditional."""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp")
    config.data.name = "digits"
    config.path.name = "gaussian"
    config.model.conditional = True
    config.model.width = 512
    config.model.features = 32
    config.train.steps = 3000
    config.train.batch_size = 256
    config.train.lr = 1e-3
    config.train.warmup = 200
    config.train.log_every = 200
    config.train.save_every = 500
    return config
