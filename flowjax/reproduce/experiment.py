"""What an experiment is: a function that measures, its figures, its published values and its cost.

An experiment is a folder with `experiment.py`, which defines `EXPERIMENT`, and `README.md`, which explains it. A
measurement has a *setting* (a row of the table, such as a method) and *metrics* (columns), and is repeated for seeds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowjax.reproduce.results import Results
from flowjax.reproduce.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Experiment", "Form"]


@dataclass(frozen=True)
class Form:
    """The full or the quick form of an experiment.

    Attributes:
        cost: the expected time and the machine, such as "30 minutes on one H200".
        seeds: the number of seeds. Seeds are 0, 1, ....
        accelerator: whether the form is meant for a GPU or TPU.
        needs: the prepared data sets that it reads, and `inception` for the Inception weights.
        published: published values by setting and metric, as numbers or as text such as "0.018 ± 0.002". They belong to
            the form that measures the same quantity.
    """

    cost: str
    seeds: int = 1
    accelerator: bool = False
    needs: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """An experiment that `flowjax reproduce` lists and runs.

    Attributes:
        title: the question or the claim, in one line.
        source: the paper and the table or figure that is reproduced; "" for a question of our own.
        full: the form whose results the experiment's page reports.
        quick: the form of `--quick`, which takes at most two minutes on two CPU cores.
        run: measures, with the methods of `Study`. The results of finished measurements are kept, so a run that was
            stopped continues with the next one.
        columns: headings of the metrics that the table shows, in order, such as {"fid": "FID"}. Other metrics are kept
            in the results only.
        draw: returns the figures by name. It is called after `run`, and may read the kept arrays of the study.
    """

    title: str
    source: str
    full: Form
    quick: Form
    run: Callable[[Study], None]
    columns: Mapping[str, str]
    draw: "Callable[[Study, Results], Mapping[str, Figure]] | None" = None
