"""What the devices can do, and what of it a run uses: model FLOP utilisation and memory."""

import re
from typing import Any

import jax

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


def out_of_memory(error: BaseException) -> str | None:
    """The device's own words if an exception, or one behind it, says that a device has too little memory.

    A kernel's shared memory, a core's vector memory and the disk run out under the same name, and are not meant.
    """
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).strip()
        named = isinstance(seen, jax.errors.JaxRuntimeError) and re.search(r"RESOURCE_EXHAUSTED|OUT_OF_MEMORY", text)
        if named and not re.search(r"shared memory|vmem|smem|no space left", text, re.IGNORECASE):
            return text.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")[:120]
        seen = seen.__cause__ or seen.__context__
    return None
