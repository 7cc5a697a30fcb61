"""Training methods, one file each. To add a method, add a file here and a line in `METHODS`."""

from flowjax.methods import times, weighted_times, weights
from flowjax.methods.base import Context, Group, Limit, Loss, Method, MethodDefaults, Network, PathMethod
from flowjax.methods.cnf import CNF
from flowjax.methods.components import Components
from flowjax.methods.consistency import Consistency
from flowjax.methods.consistency_trajectory import ConsistencyTrajectory
from flowjax.methods.continuous_consistency import ContinuousConsistency
from flowjax.methods.distillation import Distillation
from flowjax.methods.flow_map import FlowMap
from flowjax.methods.flow_matching import FlowMatching, conditional, marginal
from flowjax.methods.gan import GAN
from flowjax.methods.mean_flow import MeanFlow
from flowjax.methods.moment_matching import MomentMatching
from flowjax.methods.normalizing_flow import NormalizingFlow
from flowjax.methods.progressive_distillation import ProgressiveDistillation
from flowjax.methods.score_distillation import ScoreDistillation
from flowjax.methods.shortcut import Shortcut
from flowjax.methods.variational import Variational
from flowjax.methods.variational_diffusion import VariationalDiffusion

__all__ = [
    "CNF",
    "GAN",
    "METHODS",
    "Components",
    "Consistency",
    "ConsistencyTrajectory",
    "Context",
    "ContinuousConsistency",
    "Distillation",
    "FlowMap",
    "FlowMatching",
    "Group",
    "Limit",
    "Loss",
    "MeanFlow",
    "Method",
    "MethodDefaults",
    "MomentMatching",
    "Network",
    "NormalizingFlow",
    "PathMethod",
    "ProgressiveDistillation",
    "ScoreDistillation",
    "Shortcut",
    "Variational",
    "VariationalDiffusion",
    "conditional",
    "marginal",
    "times",
    "weighted_times",
    "weights",
]

METHODS: dict[str, type[Method]] = {
    "flow_matching": FlowMatching,
    "variational": Variational,
    "variational_diffusion": VariationalDiffusion,
    "mean_flow": MeanFlow,
    "consistency": Consistency,
    "moment_matching": MomentMatching,
    "distillation": Distillation,
    "score_distillation": ScoreDistillation,
    "gan": GAN,
    "shortcut": Shortcut,
    "flow_map": FlowMap,
    "consistency_trajectory": ConsistencyTrajectory,
    "continuous_consistency": ContinuousConsistency,
    "progressive_distillation": ProgressiveDistillation,  # pyright: ignore[reportAssignmentType] (`steps`)
    "normalizing_flow": NormalizingFlow,
    "cnf": CNF,  # pyright: ignore[reportAssignmentType] (`metrics`)
}
"""The method of each value of `config.method.name`."""
