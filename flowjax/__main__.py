"""`python -m flowjax` is the command `flowjax`."""

from flowjax.cli.main import entry

if __name__ == "__main__":
    entry()
