"""From one set of images to another without pairs: digits 0 to 4 become digits 5 to 9, paired by optimal transport.

Expect, measured with seed 0 on 752 sources (Heun, 25 steps; model space): a mean squared distance of 13.5 between an
image and its translation, against 16.5 with `coupling.name=independent` and 38.5 of random pairs; an energy distance
of 0.119 to the 149 test images of 5 to 9, against 0.181 with `independent`, 0.059 of the training images and 0.418 of
the sources; a classifier tells translations from test images with an accuracy of 0.80, as it does for training images
(0.80; sources 0.96). Training and figures took 52 s of CPU time, on two cores shared with other programs.
"""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp")
    config.data.name = "digits((5,6,7,8,9))"
    config.source.name = "digits((0,1,2,3,4))"
    config.coupling.name = "ot"
    config.model.width = 512
    config.train.steps = 1000
    config.train.batch_size = 256
    config.train.lr = 1e-3
    config.train.warmup = 100.0 * config.train.batch_size
    config.train.log_every = 100
    config.train.save_every = 1000
    config.ema.half_life = 10_000.0
    return config
