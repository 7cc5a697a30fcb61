"""The cost of a training step: floating-point operations, model FLOP utilisation, memory, and profiler traces.

Floating-point operations are counted in a jaxpr, for matrix products and convolutions only, with a multiply-add as two
operations. The count does not depend on the device, on fused kernels or on the compiler, as the definition of model
FLOP utilisation requires (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.extend import core

from flowjax.training.writers import say

__all__ = ["PEAK_TFLOPS", "Trace", "count_flops", "memory_gib", "peak_flops", "utilisation"]

PEAK_TFLOPS: dict[str, float] = {
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H200": 989.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
}
"""Dense bfloat16 rates from the vendors' data sheets in TFLOP/s, by the start of `jax.Device.device_kind`."""


def peak_flops(given: float = 0.0) -> float | None:
    """The peak rate of one device in FLOP/s.

    Args:
        given: the rate in TFLOP/s, or 0 to look it up in `PEAK_TFLOPS`.

    Returns:
        The rate, or None if the device is not in the table.
    """
    if given:
        return given * 1e12
    kind = jax.devices()[0].device_kind
    names = [name for name in PEAK_TFLOPS if kind.startswith(name)]
    return PEAK_TFLOPS[max(names, key=len)] * 1e12 if names else None


def utilisation(flops_per_step: float | None, steps_per_second: float, peak: float | None) -> float | None:
    """Model FLOP utilisation: the counted operations per second, divided by the peak rate of all devices.

    It is None if the operations or the peak rate (of one device, in FLOP/s) are unknown.
    """
    if not flops_per_step or not peak:
        return None
    return flops_per_step * steps_per_second / (peak * jax.device_count())


def memory_gib() -> float | None:
    """The peak memory use of the local devices so far, of the device with the largest, in GiB; None if unknown."""
    stats: list[Any] = [d.memory_stats() for d in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return max(peaks) / 2**30 if peaks else None


def count_flops(f: Callable[..., Any], *arguments: Any) -> float:
    """The floating-point operations of f(*arguments), where the arguments may be shapes.

    The body of a `scan` counts as often as it runs, the body of a `while_loop` once, a `cond` as its largest branch.
    """
    return _flops(jax.make_jaxpr(f)(*arguments).jaxpr)


def _flops(jaxpr: core.Jaxpr) -> float:
    return float(sum(_equation(eqn) for eqn in jaxpr.eqns))


def _equation(eqn: Any) -> float:
    name = eqn.primitive.name
    if name == "dot_general":
        out = eqn.outvars[0].aval
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * math.prod(out.shape) * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        return _convolution(eqn, eqn.outvars[0].aval)
    inner = [_flops(j) for j in _jaxprs(eqn.params)]
    if name == "cond":
        return max(inner, default=0.0)
    return float(sum(inner)) * (eqn.params["length"] if name == "scan" else 1)


def _convolution(eqn: Any, out: Any) -> float:
    """Each output sums over the kernel and the input channels, without the zeros that dilate the input."""
    kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
    taps = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    return 2.0 * math.prod(out.shape) * taps / math.prod(eqn.params["lhs_dilation"])


def _jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The jaxprs in the parameters of an equation; only the forward one of a custom derivative."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found


class Trace:
    """A profiler trace of the steps after `start` up to `stop`; no trace if the two are equal.

    If a run starts or stops between the two, the trace covers the steps that it takes there.

    Args:
        folder: the folder to which the trace is written.
        start: the step after which the trace begins.
        stop: the last step in the trace.
    """

    def __init__(self, folder: Path, start: int = 0, stop: int = 0):
        self._folder, self._start, self._stop = folder, start, stop
        self._since: int | None = None  # the step at which the running trace began

    def boundaries(self, step: int) -> list[int]:
        """The steps after `step` at which the trace begins or ends, and at which a stretch of steps must end."""
        return [boundary for boundary in (self._start, self._stop) if boundary > step]

    def begin(self, step: int) -> None:
        """Begins the trace at `step` if the next step belongs to it."""
        if self._since is None and self._start <= step < self._stop:
            try:
                jax.profiler.start_trace(self._folder)
                self._since = step
            except Exception as error:
                self._give_up(error)

    def end(self, step: int) -> None:
        """Ends the trace if `step`, which the devices must have finished, is the last step in it."""
        if self._since is not None and step >= self._stop:
            since, self._since = self._since, None
            try:
                jax.profiler.stop_trace()
                say(f"train: the trace of steps {since} to {step} is in {self._folder}; xprof shows it")
            except Exception as error:
                self._give_up(error)

    def close(self, step: int) -> None:
        """Ends a trace that is still running when training stops at `step`."""
        self._stop = min(self._stop, step)
        self.end(step)

    def _give_up(self, error: Exception) -> None:
        self._stop = self._start
        say(f"train: no trace ({' '.join(str(error).split())[:200]}); training continues without it")
