"""8 Gaussians by reflow, for one step: `flowjax reflow --config reflow_gaussians8 --workdir DIR --rounds 2`.

Expect, measured with seed 0 and 100,000 pairs in each round: one-step samples (`--solver euler --steps 1`) with W2
squared 23.1, 0.330, 0.331 after rounds 0, 1, 2, against 0.394 between two true samples; with two steps 3.56, 0.328,
0.330. The mean of |x1 - x0|^2 over the pairs, which theory does not let increase, is 14.43 in round 1 and 14.40 in
round 2. `flowjax evaluate` gives the straightness 0.233, 5.9e-5, 2.1e-5; KL(true, model) is 0.018 after round 0 and
0.040 after round 2, as the errors of the rounds add up. About 50 s of training in each round on two loaded CPU cores.
"""

from flowjax.config import defaults


def get_config():
    config = defaults("mlp")
    config.data.name = "gaussians8"
    config.model.width = 64
    config.train.steps = 5_000
    config.train.batch_size = 1024
    config.train.lr = 4e-3
    config.train.warmup = 500.0 * config.train.batch_size
    config.train.log_every = 500
    config.train.save_every = 1000
    return config
