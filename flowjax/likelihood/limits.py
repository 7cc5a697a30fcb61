"""What is refused before a likelihood is computed: points that are NaN, and tolerances below the rounding errors."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

__all__ = ["check_no_nan", "check_tolerances", "rows_text", "smallest_tolerance"]


def smallest_tolerance(dtype: jnp.dtype | type) -> float:
    """The smallest tolerance that can be reached in a dtype: its machine epsilon, 1.2e-7 in float32."""
    return float(jnp.finfo(dtype).eps)


def check_tolerances(rtol: object, atol: object, dtype: jnp.dtype) -> None:
    """Checks that an adaptive solve can reach its tolerances.

    Raises:
        ValueError: if rtol and atol are both below `smallest_tolerance`.
    """
    if isinstance(rtol, Tracer) or isinstance(atol, Tracer):
        return
    r, a, least = float(np.asarray(rtol)), float(np.asarray(atol)), smallest_tolerance(dtype)  # also under `jit`
    if max(r, a) < least:
        raise ValueError(
            f"rtol={r:g} and atol={a:g} are below the rounding errors of {jnp.dtype(dtype).name}: take 1e-6, or points "
            "in float64, for which JAX needs the environment variable JAX_ENABLE_X64=1"
        )


def check_no_nan(x: Array | np.ndarray) -> None:
    """Raises ValueError if rows of x (B, *event) have NaN, with the numbers of these rows."""
    if isinstance(x, Tracer) or not len(x):
        return
    if len(bad := np.flatnonzero(np.isnan(np.asarray(x, np.float64)).reshape(len(x), -1).any(1))):
        raise ValueError(f"x has NaN in {rows_text(bad)}: remove or repair these points, as they have no density")


def rows_text(rows: np.ndarray) -> str:
    """Row numbers as text: "row 3", "rows 1, 2" or "rows 0, 1, 2, 3, 4, ... (12 rows)"."""
    shown = ", ".join(map(str, rows[:5].tolist()))
    more = f", ... ({len(rows)} rows)" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
