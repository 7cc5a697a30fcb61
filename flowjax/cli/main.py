"""The entry point of `flowjax COMMAND`, which runs the command and reports its result or its error.

The result is one line of JSON on stdout (or the help); everything else, also the one line of an error, goes to stderr.
On a terminal, commands that show their result as a table leave the line of JSON out.
Exit codes are 0 for success, 1 for an error during a run, 2 for a usage or config error, 70 if another process of the
run was lost, 130 for Ctrl-C, and 143 for SIGTERM, after saving. Only the chosen command is imported.
"""

import importlib
import os
import signal
import sys
import traceback
from typing import Any

from flowjax.cli.usage import Help, UsageError
from flowjax.errors import ConfigError, WeightsError, unknown
from flowjax.files import json_text

__all__ = ["COMMANDS", "entry", "main"]

COMMANDS = {
    "train": "train a flow from a config file, or resume it",
    "sweep": "train over a grid of config values, and tabulate the results",
    "rounds": "estimate the posterior of one observation in rounds of simulation and training",
    "reflow": "train a flow, and then straighter flows on the pairs of the flow before",
    "sample": "draw samples from a trained run",
    "pairs": "make pairs of source samples and samples with a trained run",
    "likelihood": "compute log-likelihoods of points, exactly or by an estimate",
    "encode": "map data to the source of a trained run",
    "decode": "map points of the source to data",
    "evaluate": "compute metrics of a run: those of its data set, or FID and others",
    "plot": "draw figures of a run again, in vector formats too",
    "reproduce": "list the experiments, or run one and write its table",
    "report": "write a report of a run as one HTML page",
    "compare": "compare runs side by side on one HTML page",
    "export": "write the weights of a run into one safetensors file",
    "convert": "convert the weights of a published PyTorch network",
    "configs": "list the shipped configs, or show what the keys of a config mean",
}

_TABULATED = frozenset({"compare", "configs", "evaluate", "reproduce", "sweep"})
"""Commands that also write their result on stderr, as a table or in words."""

_HELP = """flowjax: flow matching and diffusion in JAX.

usage: flowjax COMMAND [flags]       (flowjax COMMAND --help shows the flags and an example)

{commands}

example:
  flowjax train --config gaussians8 --workdir runs/g8
  flowjax sample --workdir runs/g8 --num 50000 --out samples.npz
  flowjax evaluate --workdir runs/g8

A command prints one line of JSON on stdout; progress and errors go to stderr. On a terminal, commands
that show their result as a table leave the line of JSON out.
"""


def entry() -> None:
    """Runs the console script. SIGTERM exits with 143; the training loop saves a checkpoint first."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    out = _stdout_for_results()
    try:
        code = main(sys.argv[1:], out)
    except SystemExit as stop:
        _leave(int(stop.code or 0))
        raise
    if code:
        _leave(code)
    sys.exit(code)


def _stdout_for_results() -> Any:
    """Returns a stream to the standard output for the JSON line, and redirects file descriptor 1 to stderr.

    Native libraries such as gloo, child processes and calls of `print` write to file descriptor 1. Their output goes to
    stderr, so that the standard output contains only the result.
    """
    try:
        out = os.fdopen(os.dup(1), "w")
    except OSError:  # the caller has closed it
        return open(os.devnull, "w")
    try:
        os.dup2(2, 1)
    except OSError:  # stderr is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return out


def _leave(code: int) -> None:
    """Ends this process without waiting for the other processes of the run."""
    if "flowjax.training.heartbeat" in sys.modules:
        sys.modules["flowjax.training.heartbeat"].leave(code)


def main(argv: list[str], out: Any = None) -> int:
    """Runs one command.

    Args:
        argv: the command and its flags.
        out: the text stream for the JSON line or the help; `sys.stdout` by default.

    Returns:
        The exit code.
    """
    out = sys.stdout if out is None else out
    try:
        code = _main(argv, out)
        out.flush()
        return code
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return 1


def _main(argv: list[str], out: Any) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        text = _HELP.format(commands="\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items()))
        (out if argv else sys.stderr).write(text)
        return 0 if argv else 2
    if argv[0] == "--version":
        out.write(f"{importlib.import_module('flowjax').__version__}\n")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        return _fail(f"command: {unknown(name, COMMANDS)}", 2)
    try:
        result = importlib.import_module(f"flowjax.cli.{name}").run(rest)
        if _prints() and not (name in _TABULATED and out.isatty() and sys.stderr.isatty()):
            out.write(json_text(result) + "\n")
            out.flush()
        return 1 if result.get("failed") else 0  # runs of a sweep
    except Help as text:
        out.write(str(text))
        return 0
    except BrokenPipeError:  # handled by `main`, as it is not an error of the command
        raise
    except KeyboardInterrupt:
        return _fail(f"{name}: interrupted", 130)
    except Exception as error:
        return _report(name, error)


def _prints() -> bool:
    """Whether this process prints the result: of several processes of one run, only the first one does."""
    processes = sys.modules.get("flowjax.training.processes")
    return processes is None or processes.is_primary()


def _report(name: str, error: Exception) -> int:
    """Prints an error in one line, once for all processes of a run, and returns the exit code."""
    if os.environ.get("FLOWJAX_TRACEBACK"):
        traceback.print_exc()
    text, code = _line(name, error)
    line: str | None = f"{name}: {text}"
    if "flowjax.training.heartbeat" in sys.modules:
        heartbeat = sys.modules["flowjax.training.heartbeat"]
        if (lost := heartbeat.lost_process(error)) is not None:
            return _fail(f"{name}: {lost}", heartbeat.LOST)
        line = heartbeat.fault_line(line)
    return code if line is None else _fail(line, code)


def _line(name: str, error: Exception) -> tuple[str, int]:
    """Returns the message of an error in one line, and the exit code of its type."""
    line = " ".join(str(error).split())
    if isinstance(error, UsageError | ConfigError | WeightsError):
        return line, 2
    if "jax" in sys.modules:
        errors = importlib.import_module("flowjax.cli.errors")
        if isinstance(error, errors.Preempted):
            return line, 128 + getattr(error, "number", 0)
        if isinstance(error, errors.USAGE):
            return line, 2
        if isinstance(error, errors.FAULTS):
            return line, 1
        if (advice := errors.memory_line(name, error)) is not None:
            return advice, 1
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}", 1
    return f"{type(error).__name__}: {line[:300]} (FLOWJAX_TRACEBACK=1 shows where)", 1


def _fail(line: str, code: int) -> int:
    sys.stderr.write(f"flowjax: {line}\n")
    return code
