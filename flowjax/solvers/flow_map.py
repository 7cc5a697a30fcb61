"""The samplers for models of the map of a flow: between any two times, or from any time to the data."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from flowjax.keys import RowKeys
from flowjax.paths.affine import AffinePath
from flowjax.solvers.samplers import BaseSampler, SamplerState, standard_normal

__all__ = ["ConsistencySteps", "FlowMapSteps"]


@dataclass(frozen=True)
class FlowMapSteps(BaseSampler):
    """Applies the model's flow map from each time of the grid to the next: one evaluation per step.

    A step x' = flow_map(t, t', x) has no discretisation error, so its error is the error of the learned map (Boffi et
    al. 2024, "Flow map matching", arXiv 2406.07507; Geng et al. 2025, "Mean flows", arXiv 2505.13447, algorithm 2). A
    single step maps the source to the data.

    Args:
        path: the path of the model, which grids in terms of noise levels need; the default uniform grid does not.
    """

    path: AffinePath | None = None
    needs: ClassVar[tuple[str, ...]] = ("flow_map",)
    any_space: ClassVar[bool] = True

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        return SamplerState(model.flow_map(t, t_next, state.x))


@dataclass(frozen=True)
class ConsistencySteps(BaseSampler):
    """Maps the sample to the data in each step, and adds new noise to reach the next time: one evaluation per step.

        x' = alpha(t') to_data(t, x) + sigma(t') z,    z ~ N(0, I)

    (Song et al. 2023, "Consistency models", arXiv 2303.01469, algorithm 1). The last step, at which sigma is 0, adds
    none, and a single step maps the source to the data. For an exact map to the data, the samples at each time have
    exactly the distribution of the path.

    Args:
        path: a Gaussian path.

    Raises:
        ValueError: if the noise of the path is not N(0, I).
    """

    path: AffinePath
    needs: ClassVar[tuple[str, ...]] = ("to_data",)
    needs_noiseless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.path is not None and not self.path.has_score:
            raise ValueError(
                "consistency adds new noise N(0, I) in each step, so it needs a source N(0, I) that is independent of "
                "the data"
            )

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def needs_score(self) -> bool:
        return False  # it adds noise to the data and follows no SDE

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        assert key is not None
        x = model.to_data(t, state.x)
        r = self.path.rates(t_next, x)
        # at the end of the path sigma may be tiny and not 0, and the map to the data ends there
        sigma = jnp.where(t_next < self.path.t_max, r.sigma, 0.0)
        alpha = jnp.where(t_next < self.path.t_max, r.alpha, 1.0)
        return SamplerState(alpha * x + sigma * standard_normal(key, x))
