"""Samplers of models that jump along their flow."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array

from flowjax.keys import RowKeys
from flowjax.paths.affine import AffinePath
from flowjax.solvers.samplers import BaseSampler, SamplerState

__all__ = ["FlowMapSteps"]


@dataclass(frozen=True)
class FlowMapSteps(BaseSampler):
    """The model's own map from each time of the grid to the next: x' = flow_map(t, t', x), one evaluation a step.

    A step has no discretisation error: it is as exact as the learned map (Boffi et al. 2025, "Flow map matching"; Geng
    et al. 2025, "Mean flows", algorithm 2). Few steps do: one is the map from the source to the data.

    Args:
        path: of the model, for grids that depend on its noise levels; the default grid, even in t, needs none.
    """

    path: AffinePath | None = None
    needs: ClassVar[tuple[str, ...]] = ("flow_map",)

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        return SamplerState(model.flow_map(t, t_next, state.x))
