"""The cache of compiled programs, which later commands reuse."""

import os
from pathlib import Path

from flowjax.cli.usage import UsageError

__all__ = ["use"]


def use(folder: str | None) -> Path | None:
    """Sets the folder of JAX's compilation cache. Must be called before anything is compiled.

    The environment variable JAX_COMPILATION_CACHE_DIR, which JAX reads itself, takes precedence.

    Args:
        folder: the value of --compilation_cache. "" disables the cache. None selects `xla` in $FLOWJAX_CACHE or
            ~/.cache/flowjax on a GPU or TPU, and no cache on the CPU, because a program for one CPU may contain
            instructions that another CPU does not have.

    Returns:
        The folder, or None if no folder was set here.

    Raises:
        UsageError: if `folder` cannot be created.
    """
    import jax

    from flowjax.metrics.cache import cache_folder

    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder == "" or (folder is None and _on_cpu()):
        return None
    path = cache_folder() / "xla" if folder is None else Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if folder is None:
            return None  # a read-only home directory is not an error
        raise UsageError(f"--compilation_cache {folder}: {error.strerror}") from None
    jax.config.update("jax_compilation_cache_dir", str(path))
    # the address of a partitioning rule (models.norm_kernel) differs between processes
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    return path


def _on_cpu() -> bool:
    import jax

    return jax.default_backend() == "cpu"
