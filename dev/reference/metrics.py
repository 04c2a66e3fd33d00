"""Write docs/metrics.md from the enumeration of metrics."""

from dev.reference.markdown import code, fill, table
from dev.reference.source import attribute_comments, attribute_docstrings
from taskchat.http.telemetry import Metric


def page() -> str:
    """Return the page."""
    meanings, dimensions = attribute_docstrings(Metric), attribute_comments(Metric)
    rows = [
        [code(metric.value), metric.unit.value, _dimensions(dimensions.get(metric.name, "")), meanings[metric.name]]
        for metric in Metric
    ]
    return fill("metrics", table(["Metric", "Unit", "More dimensions", "Meaning"], rows))


def _dimensions(names: str) -> str:
    return ", ".join(code(name) for name in names.split(", ") if name)
