"""What a step costs and how well the devices are used: counted operations, model FLOP utilisation, memory, traces.

Floating-point operations are counted on a program's jaxpr: matrix products and convolutions, a multiply-add as 2. The
number is the same on every device, with fused kernels or without, and before the compiler has changed anything: what
"model FLOPs" means in a model FLOP utilisation. Elementwise work is not in it.
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
"""Dense bfloat16 rates by the vendors' data sheets, TFLOP/s, by the first words of the device's kind."""


def peak_flops(given: float = 0.0) -> float | None:
    """FLOP/s of one device: `given` TFLOP/s, or the data sheet's where that is 0; None where neither is known."""
    if given:
        return given * 1e12
    kind = jax.devices()[0].device_kind
    names = [name for name in PEAK_TFLOPS if kind.startswith(name)]
    return PEAK_TFLOPS[max(names, key=len)] * 1e12 if names else None


def utilisation(flops_per_step: float | None, steps_per_second: float, peak: float | None) -> float | None:
    """Model FLOP utilisation: the share of all devices' peak that the step's counted operations are."""
    if not flops_per_step or not peak:
        return None
    return flops_per_step * steps_per_second / (peak * jax.device_count())


def memory_gib() -> float | None:
    """The largest memory that any of this host's devices had in use so far, GiB; None where it is not told."""
    stats: list[Any] = [d.memory_stats() for d in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return max(peaks) / 2**30 if peaks else None


def count_flops(f: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of f(*arguments), which may be shapes; a `scan` counts its length, a `while_loop` one turn, a branch the
    largest."""
    return _of(jax.make_jaxpr(f)(*arguments).jaxpr)


def _of(jaxpr: core.Jaxpr) -> float:
    return float(sum(_equation(eqn) for eqn in jaxpr.eqns))


def _equation(eqn: Any) -> float:
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * math.prod(out.shape) * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        return _convolution(eqn, out)
    inner = [_of(j) for j in _jaxprs(eqn.params)]
    if name == "cond":
        return max(inner, default=0.0)
    return float(sum(inner)) * (eqn.params["length"] if name == "scan" else 1)


def _convolution(eqn: Any, out: Any) -> float:
    """Each output sums over the kernel and its input channels; of a dilated input, over the pixels that are there."""
    kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
    taps = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    return 2.0 * math.prod(out.shape) * taps / math.prod(eqn.params["lhs_dilation"])


def _jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The programs inside an equation; the forward one alone of a rule for derivatives."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found


class Trace:
    """The steps from `start` to `stop`, traced into a folder; nothing where the two are the same.

    A run that starts between the two traces what is left. One that stops between them keeps what it has.

    Args:
        folder: of the trace.
        start: the first step traced is the one after it.
        stop: the last step traced.
    """

    def __init__(self, folder: Path, start: int = 0, stop: int = 0):
        self._folder, self._start, self._stop = folder, start, stop
        self._since: int | None = None  # where the trace that runs was begun

    def borders(self, step: int) -> list[int]:
        """Steps after `step` where tracing begins or ends: stretches must break there."""
        return [border for border in (self._start, self._stop) if border > step]

    def begin(self, step: int) -> None:
        """Begins before the step after `step`, if that is one to trace."""
        if self._since is None and self._start <= step < self._stop:
            try:
                jax.profiler.start_trace(self._folder)
                self._since = step
            except Exception as error:
                self._give_up(error)

    def end(self, step: int) -> None:
        """Ends after `step`, which the device must have finished, if no more are to be traced."""
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
        say(f"train: no trace ({' '.join(str(error).split())[:200]}); training goes on")
