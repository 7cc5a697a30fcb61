"""Inpainting of Fashion-MNIST: a missing square of 14 x 14 pixels in the centre is filled in, by conditioning.

Expect, measured with seed 0 in the missing square of 256 test images with 4 samples each (Heun, 25 steps): PSNR 14.41
dB of the mean of the four and 12.45 dB of a sample, against 7.47 dB of the mean of the other pixels; outside of the
square, samples differ from what is given by 2.35 of 255 levels (root mean square). Textures are grainy: the run is
short. Training and figures took 154 s of CPU time, on two cores shared with other programs.
"""

from flowjax.config import defaults


def get_config():
    config = defaults("dit")
    config.data.name = "fashion_mnist"
    config.data.degrade = "box(14)"
    config.data.cond = ("degraded",)
    config.data.cond_dropout = 0.0
    config.path.name = "gaussian"
    config.model.patch = 4
    config.model.width = 96
    config.model.depth = 4
    config.model.heads = 4
    config.model.dtype = "float32"
    config.train.optimizer = "muon"
    config.train.steps = 500
    config.train.batch_size = 64
    config.train.lr = 1e-2
    config.train.warmup = 50.0 * config.train.batch_size
    config.train.log_every = 50
    config.train.save_every = 250
    config.ema.half_life = 3_000.0
    return config
