"""The posterior of SLCP (simple likelihood, complex posterior) from 10,000 simulations.

A task of the benchmark of simulation-based inference (Lueckmann et al. 2021), whose posterior has four modes. So few
simulations are soon learned by heart: the network is small and regularised, and `--checkpoint best` samples from the
step with the lowest validation loss. Expect a mean C2ST of 0.864 (standard deviation 0.005 over three seeds) over the
ten observations of the benchmark, and a mean log-density of -4.6 at the true parameters (`flowjax reproduce inference`,
on an H200).
The settings suit tasks with wide posteriors: data.simulator=bernoulli_glm has 0.559 with them.
"""

from flowjax.config import defaults


def get_config():
    config = defaults("resmlp")
    config.data.name = "simulator(num=10000)"
    config.data.simulator = "slcp"
    config.data.cond = ("obs(dropout=0, encoder='mlp')",)
    config.model.width = 128
    config.model.depth = 4
    config.model.dropout = 0.1
    config.train.steps = 6000
    config.train.optimizer = "adamw"
    config.train.weight_decay = 1.0
    config.train.log_every = 500
    return config
