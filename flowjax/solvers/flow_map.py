"""The sampler for models with a flow map."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array

from flowjax.keys import RowKeys
from flowjax.paths.affine import AffinePath
from flowjax.solvers.samplers import BaseSampler, SamplerState

__all__ = ["FlowMapSteps"]


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
