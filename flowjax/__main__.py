"""`python -m flowjax` is the command `flowjax`."""

import os
import sys

if sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # `python -m` adds the current folder, in which JAX would import everything under `jax_plugins`

from flowjax.cli.main import entry

if __name__ == "__main__":
    entry()
