"""Pages about runs: a report of one run and a comparison of several, each as one HTML file without other resources."""

from flowjax.pages.comparison import Comparison, check_different, compare
from flowjax.pages.record import shown
from flowjax.pages.report import Report, report

__all__ = ["Comparison", "Report", "check_different", "compare", "report", "shown"]
