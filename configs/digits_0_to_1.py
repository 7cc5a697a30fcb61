"""From one data set to another: images of 0 become images of 1, paired by optimal transport in the batch.

Expect, measured with seed 0: ones that can be read; loss 0.054; path energy 39.0 against W2 squared 46.9 between the
two sets (few images: 151 zeros and 151 ones to train on). 15 s on two quiet CPU cores.
"""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp")
    config.data.name = "digits(1)"
    config.source.name = "digits(0)"
    config.coupling.name = "ot"
    config.model.width = 256
    config.train.steps = 1000
    config.train.batch_size = 128
    config.train.warmup = 100.0 * config.train.batch_size
    config.train.log_every = 100
    return config
