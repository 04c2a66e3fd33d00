"""Count requests as metrics. A failure of logs or metrics never changes the answer to a request."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

logger: Final = Logger()
metrics: Final = Metrics()
metrics.namespace = metrics.namespace or "taskchat"  # if POWERTOOLS_METRICS_NAMESPACE is not set


class Context(Protocol):
    """The part of Lambda's context that the metrics read."""

    @property
    def function_name(self) -> str:
        """The dimension of the cold-start metric."""


def attempt(report: Callable[..., object], *arguments: Any) -> None:
    """Call a function that reports on a request. Log a failure if that is possible; it never changes the answer."""
    try:
        report(*arguments)
    except Exception as error:
        with suppress(Exception):
            logger.error("report failed", extra={"reason": type(error).__name__})


def count(status: int, context: Context) -> None:
    """Write the metrics of a request: its status and, once in a process, the cold start. It raises nothing."""
    attempt(_write, status, context)
    attempt(metrics.clear_metrics)  # metrics that could not be written must not be written with the next request


@metrics.log_metrics(capture_cold_start_metric=True)
def _write(status: int, _context: Context) -> None:
    """Add the metric. The decorator writes it, with the cold start's."""
    metrics.add_metric(name=f"Status{status // 100}xx", unit=MetricUnit.Count, value=1)
