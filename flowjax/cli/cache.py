"""The cache of compiled programs, which later commands reuse."""

import hashlib
import os
from pathlib import Path

from flowjax.cli.usage import UsageError

__all__ = ["use"]

_SHORTEST_ON_CPU = 0.05
"""Programs that take fewer seconds to compile are not kept on the CPU: reading one takes about 0.01 s."""

_CPUINFO = Path("/proc/cpuinfo")

_OF_INSTRUCTIONS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
)
"""The fields of this file, on x86 and on ARM, that determine for which instructions programs are compiled."""


def use(folder: str | None) -> Path | None:
    """Sets the folder of JAX's compilation cache. Must be called before anything is compiled.

    The environment variable JAX_COMPILATION_CACHE_DIR, which JAX reads itself, takes precedence.

    Args:
        folder: the value of --compilation_cache. "" disables the cache. None selects `xla` in $FLOWJAX_CACHE or
            ~/.cache/flowjax, and on the CPU a folder in it for this kind of CPU, because a program for one CPU may
            contain instructions that another CPU does not have. On systems that do not describe their CPU in
            /proc/cpuinfo there is no cache on the CPU by default.

    Returns:
        The folder, or None if no folder was set here.

    Raises:
        UsageError: if `folder` cannot be created.
    """
    import jax

    from flowjax.metrics.cache import cache_folder

    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder == "":
        return None
    on_cpu = jax.default_backend() == "cpu"
    path = cache_folder() / "xla" if folder is None else Path(folder).expanduser()
    if folder is None and on_cpu:
        if (kind := _kind_of_cpu()) is None:
            return None
        path /= f"cpu-{kind}"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if folder is None:
            return None  # a read-only home directory is not an error
        raise UsageError(f"--compilation_cache {folder}: {error.strerror}") from None
    jax.config.update("jax_compilation_cache_dir", str(path))
    # the address of a partitioning rule (models.norm_kernel) differs between processes
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    if on_cpu and "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_ON_CPU)
    return path


def _kind_of_cpu() -> str | None:
    """Returns a hash of the model of the CPU, its instructions and the number of cores; None if they are not known.

    JAX's own keys contain the versions of JAX and XLA and the program, but on the CPU neither its instructions nor the
    number of cores, for which a program is divided.
    """
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return None
    described = {line for line in lines if line.partition(":")[0].strip() in _OF_INSTRUCTIONS}
    if not described:
        return None
    text = "\n".join([*sorted(described), str(len(os.sched_getaffinity(0)))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
