"""Compiled programs, kept from one command to the next."""

import os
from pathlib import Path

from flowjax.cli.usage import UsageError

__all__ = ["use"]


def use(folder: str | None) -> Path | None:
    """Keeps compiled programs in a folder, and takes them from there; called before anything compiles.

    The variable JAX_COMPILATION_CACHE_DIR, which JAX reads itself, wins.

    Args:
        folder: --compilation_cache. None for `xla` in $FLOWJAX_CACHE or ~/.cache/flowjax on a GPU or TPU, and for no
            folder on the CPU, whose programs hold instructions that another machine may not have. "" for none.

    Returns:
        The folder; None if there is none, or if JAX was told another.

    Raises:
        UsageError: if the folder that was asked for cannot be written.
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
            return None  # a read-only home is no reason to stop
        raise UsageError(f"--compilation_cache {folder}: {error.strerror}") from None
    jax.config.update("jax_compilation_cache_dir", str(path))
    # the address of a partitioning rule (models.norm_kernel) is another in each process
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    return path


def _on_cpu() -> bool:
    import jax

    return jax.default_backend() == "cpu"
