"""What the files of a workdir say about a run, without its checkpoints: config, records, metrics and environment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.config import flatten
from flowjax.data import DataSpec
from flowjax.formatting import NONE, format_mean, format_value
from flowjax.inference.kept_metrics import KeptMetrics, read_kept
from flowjax.training import workdir as workdirs
from flowjax.training import writers

__all__ = [
    "COLUMNS",
    "RunRecord",
    "flags_of",
    "label_of",
    "read_run",
    "settings_text",
    "shown",
    "with_error",
]

COLUMNS = {
    "loss": "training loss",
    "val_loss": "validation loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "samples_per_second": "samples/s",
}
"""The entries of `metrics.jsonl` that every method has and that are drawn, with their names."""

_NOT_DRAWN = (
    "step",
    "samples_seen",
    "skipped_steps",
    "mfu",
    "device_gib",
    "checkpoint_seconds",
    "stall_seconds",
    "time",
)

_LABELS = {
    "nll": "negative log-likelihood (nats)",
    "nll_difference": "mean change of log-likelihoods with a finer solver (nats)",
    "nll_converged": "log-likelihoods converged within the limit (1: yes)",
    "kl": "KL from the true density (nats)",
    "bits_per_dim": "bits per dimension",
    "dequantisation": "dequantisation of the integers",
    "importance_samples": "importance samples K of each point",
    "divergence": "divergence of the likelihood",
    "probes": "random vectors of the divergence",
    "w2": "W2 to the data",
    "w2_squared": "W2² to the data",
    "w2_squared_true": "W2² between two sets of data",
    "w2_squared_source": "W2² from source to data",
    "mmd": "MMD²",
    "npe": "normalised path energy",
    "path_energy": "path energy",
    "straightness": "deviation from straight lines",
    "transport_cost": "transport cost",
    "turning": "turning of trajectories (radians)",
    "mode_share_min": "smallest share of a mode",
    "mode_share_max": "largest share of a mode",
    "marginal_w1": "W1 of a feature, mean (standard deviations)",
    "marginal_w1_true": "W1 of a feature, mean, between two sets of data",
    "marginal_w1_max": "W1 of a feature, largest (standard deviations)",
    "marginal_w1_max_true": "W1 of a feature, largest, between two sets of data",
    "marginal_ks_max": "Kolmogorov-Smirnov statistic of a feature, largest",
    "marginal_ks_max_true": "Kolmogorov-Smirnov statistic, largest, between two sets of data",
    "correlation_error": "error of the correlations, root mean square",
    "correlation_error_true": "error of the correlations, root mean square, between two sets of data",
    "correlation_error_max": "error of the correlations, largest",
    "correlation_error_max_true": "error of the correlations, largest, between two sets of data",
    "autocorrelation_error": "error of the autocorrelations, root mean square",
    "autocorrelation_error_true": "error of the autocorrelations, root mean square, between two sets of data",
    "energy_distance": "energy distance to the data",
    "energy_distance_true": "energy distance between two sets of data",
    "c2st": "accuracy of the classifier two-sample test",
    "fid": "FID",
    "sfid": "sFID",
    "kid": "KID",
    "num": "number of samples",
    "nfe": "evaluations per sample",
}
"""The names of metrics on pages; other metrics keep their own."""


def label_of(metric: str) -> str:
    """The name of a metric on a page; `w2_squared_4` is that of samples of 4 steps."""
    base, _, steps = metric.rpartition("_")
    return f"{label_of(base)}, {steps} steps" if base and steps.isdecimal() else _LABELS.get(metric, metric)


@dataclass(frozen=True)
class RunRecord:
    """What the files of a workdir say about a run.

    Attributes:
        workdir: of the run.
        raw: the config as it is in `config.json`, not checked.
        spec: of the data.
        records: the records of `metrics.jsonl`.
        kept: the metrics that `flowjax evaluate` has kept, the latest ones last.
        size: the number of `parameters` and of `flops_per_step`, where they are known.
        environment: `versions`, `git_commit` and `devices`.
    """

    workdir: Path
    raw: dict[str, Any]
    spec: DataSpec
    records: list[dict[str, Any]]
    kept: list[KeptMetrics]
    size: dict[str, Any]
    environment: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The values of the config by key."""
        return flatten(self.raw)

    @property
    def last(self) -> dict[str, Any]:
        """The last record; empty if there is none."""
        return self.records[-1] if self.records else {}

    @property
    def finished(self) -> bool:
        """Whether the run has taken all steps of its config."""
        return self.last.get("step", 0) >= self.config.get("train.steps", 0)

    @property
    def columns(self) -> dict[str, str]:
        """The entries that are drawn, with their names: `COLUMNS`, and the metrics of the method that change."""
        own = [key for key in self.last if key not in COLUMNS and key not in _NOT_DRAWN]
        changes = lambda key: len({record.get(key) for record in self.records}) > 1
        return COLUMNS | {key: key.replace("_", " ") for key in own if changes(key)}

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """An entry of all records: the number of samples seen, (N,), and its values, (N,), NaN where there is none."""
        column = lambda name: np.asarray([record.get(name) for record in self.records], float)
        return column("samples_seen"), column(key)


def read_run(workdir: Path) -> RunRecord:
    """Reads the files of a workdir.

    Raises:
        WorkdirError: if it is not the workdir of a run.
    """
    raw, spec = workdirs.read_config(workdir)
    return RunRecord(
        workdir,
        raw,
        spec,
        writers.read_metrics(workdir / "metrics.jsonl"),
        read_kept(workdir),
        workdirs.read_size(workdir),
        workdirs.read_environment(workdir),
    )


def shown(value: Any) -> str:
    """Returns the value of a config key as text, or a hyphen for None."""
    return NONE if value is None else format_value(value)


def flags_of(kept: KeptMetrics) -> list[str]:
    """Returns the settings of an evaluation as flags of `flowjax evaluate`."""
    return [_flag(name, value) for name, value in kept.settings.items()]


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {','.join(map(str, value)) if isinstance(value, list) else format_value(value)}"


def settings_text(kept: KeptMetrics) -> str:
    """Returns the step and the settings of an evaluation as text."""
    return ", ".join([f"step {kept.step:,}", *flags_of(kept)])


def with_error(metrics: dict[str, Any], name: str) -> str:
    """Returns a metric as text, with its standard error if that is known."""
    value = metrics.get(name)
    if isinstance(value, str):
        return value
    return format_mean(float(value) if isinstance(value, int) else value, metrics.get(f"{name}_stderr"))
