"""Fashion-MNIST, class-conditional, a small U-Net that learns garments on a CPU in minutes."""

from flowjax.config import defaults


def get_config():
    config = defaults("unet")
    config.data.name = "fashion_mnist"
    config.path.name = "gaussian"
    config.model.conditional = True
    config.model.channels = 32
    config.model.multipliers = (1, 2)
    config.model.blocks = 1
    config.model.patch = 2
    config.train.steps = 1500
    config.train.batch_size = 64
    config.train.lr = 2e-3
    config.train.warmup = 100
    config.train.log_every = 50
    config.train.save_every = 250
    config.ema.half_life = 5_000.0
    return config
