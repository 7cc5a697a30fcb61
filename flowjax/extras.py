"""Optional packages: which extra of flowjax brings them, and the error if one is not installed."""

import importlib

from flowjax.errors import ConfigError

__all__ = ["MissingPackage", "install_command", "require"]

_PACKAGES = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}
"""The name of the package that holds a module, where the two names differ."""


class MissingPackage(ConfigError):
    """An optional package is not installed. The message is one line that names the package and the extra to install."""


def install_command(extra: str) -> str:
    """Returns the shell command that installs an extra of flowjax, such as "plots"."""
    return f"pip install 'flowjax-research[{extra}]'"


def require(module: str, extra: str) -> None:
    """Imports a module of an optional package.

    Call this before the `import` statement of the module, inside of the function that needs it.

    Args:
        module: the module, such as "matplotlib".
        extra: the extra of flowjax that brings its package, such as "plots".

    Raises:
        MissingPackage: if the module, or a package that it needs, is not installed.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        package = _PACKAGES.get(missing, missing)
        raise MissingPackage(f"{package} is not installed: {install_command(extra)}") from None
