"""Guidance: a guide turns a model into another model, so it can be used with any ODE or SDE sampler.

Every guide changes the posterior means of the ends in the one direction that leaves x_t unchanged,
(x0, x1) += (-alpha, sigma) k. Then alpha x1 + sigma x0 = x_t still holds, and all predictions stay consistent:

    classifier-free   uncond + scale (cond - uncond)                           Ho & Salimans 2022, arXiv 2207.12598
    autoguidance      weak + scale (strong - weak)                             Karras et al. 2024, arXiv 2406.02507
    classifier        score + scale grad log p(y | x_t)                        Dhariwal & Nichol 2021, arXiv 2105.05233
    posterior         the same, with p(y | x_t) approximated at E[x1 | x_t]    Chung et al. 2023, arXiv 2209.14687

`Composed` combines a model's predictions for several independent observations of the same example.

A scale of 0 gives the unconditional model (or the weak network) and a scale of 1 the conditional one (or the strong
network). A larger scale gives samples that are more concentrated than the data.
"""

from flowjax.guidance.composed import Composed
from flowjax.guidance.extrapolation import Auto, ClassifierFree
from flowjax.guidance.likelihoods import Classifier, LogLikelihood, Measurement, Posterior
from flowjax.guidance.measurements import LinearMeasurement, linear_measurement

__all__ = [
    "Auto",
    "Classifier",
    "ClassifierFree",
    "Composed",
    "LinearMeasurement",
    "LogLikelihood",
    "Measurement",
    "Posterior",
    "linear_measurement",
]
