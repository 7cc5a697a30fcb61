"""Draws the figure of the page on samplers from the measurements in experiments/.

    python scripts/samplers_figure.py      # writes docs/images/samplers.png

The left panel is `experiments/samplers_nfe` (a trained network), the middle and the right one are
`experiments/samplers_defaults` (exact fields). Nothing is measured here.
"""

import json
from pathlib import Path

from flowjax import plots
from flowjax.plots.style import PALETTE, new_figure

ROOT = Path(__file__).parent.parent
EVALUATIONS = {"heun": lambda n: 2 * n, "rk4": lambda n: 4 * n, "edm": lambda n: 2 * n - 1}
"""Evaluations in n steps, of the samplers with more than one per step."""

SHOWN = ("euler", "heun", "rk4", "ab2", "ddim", "dpmpp_2m", "unipc", "edm")
"""`ddim` and `euler` take the same steps on the straight path with even times."""

Curve = list[tuple[float, float]]


def measured(experiment: str) -> dict[str, dict[str, float]]:
    """The metrics of each setting of an experiment."""
    results = json.loads((ROOT / "experiments" / experiment / "results.json").read_text())
    return {m["setting"]: m["metrics"] for m in results["measurements"]}


def trained() -> dict[str, Curve]:
    """The error on the digits network: `edm` on the published grid, all others on even times."""
    metrics = measured("samplers_nfe")
    shown = {name: metrics["edm, grid edm" if name == "edm" else name] for name in SHOWN if name != "ddim"}
    return {
        name: [(m[f"nfe_{n}"], m[f"rms_{n}"]) for n in (8, 16, 32, 64, 128) if f"rms_{n}" in m]
        for name, m in shown.items()
    }


def exact(schedule: str) -> dict[str, Curve]:
    """The error on the exact field of 8 Gaussians, each sampler with its default grid."""
    metrics = measured("samplers_defaults")
    errors = {name: metrics[f"gaussians8: {name}, RMS"] for name in SHOWN}
    evaluations = lambda name, n: EVALUATIONS.get(name, lambda n: n)(n)
    return {name: [(evaluations(name, n), m[f"{schedule}_{n}"]) for n in (10, 20, 40)] for name, m in errors.items()}


def main() -> None:
    panels = {
        "digits network, condot": trained(),
        "exact 8 Gaussians, vp": exact("vp"),
        "exact 8 Gaussians, ve": exact("ve"),
    }
    figure, axes = new_figure(1, len(panels), 3.0, 3.6, sharey=True)
    for ax, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for name, curve in curves.items():
            i = SHOWN.index(name)
            style = {"c": PALETTE[i], "marker": "osD^vP*X"[i], "ms": 5, "lw": 1.4}
            ax.plot(
                *zip(*sorted(curve), strict=True),
                label="euler (= ddim on condot)" if name == "euler" else name,
                **style,
            )
        ax.set(xscale="log", yscale="log", xlabel="evaluations of the network", title=title)
        ax.set_xticks([8, 16, 32, 64, 128], labels=["8", "16", "32", "64", "128"])
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("error: RMS to the exact trajectory")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    plots.save(figure, ROOT / "docs/images/samplers.png")


if __name__ == "__main__":
    main()
