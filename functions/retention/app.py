"""Delete the rows of all persons that are older than RETENTION_DAYS. EventBridge invokes the handler once a day."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from taskchat import limits, logs
from taskchat.conversations import models as conversations
from taskchat.database.engine import create_engine_for, refuse_unsafe_role
from taskchat.http.telemetry import Metric, write_metrics
from taskchat.personal_data import models as personal_data
from taskchat.personal_data import retention
from taskchat.personal_data.retention import BATCH_SECONDS, Run
from taskchat.settings import RetentionSettings, is_on_lambda, load
from taskchat.tasks import toolset
from taskchat.toolcalls import models as tool_calls

_WITH_TABLES: Final = (conversations, limits, personal_data, tool_calls, toolset)
"""Their imports fill the metadata with every table. The domain has its own in one package with its tools."""

SCHEMA: Final = "taskchat.retention/1"
"""Version of the log line. A field may be added to a version, but never changed or removed."""

logger = Logger()
logs.configure()


class RetentionFailed(Exception):
    """Raised when old rows of a table could not be deleted. The log has the reason: its text may quote a person."""


def delete_old_rows(may_begin: Callable[[], bool]) -> Run:
    """Delete old rows, and log and count them. Raises SettingsError."""
    settings = load(RetentionSettings)
    check = partial(refuse_unsafe_role, variable="RETENTION_DATABASE_URL")
    engine = create_engine_for(settings.retention_database_url.get_secret_value, BATCH_SECONDS, check)
    try:
        run = retention.delete_old_rows(engine, settings.retention_days, may_begin)
    finally:
        engine.dispose()
    _report(settings.retention_days, run)
    return run


def _report(days: int, run: Run) -> None:
    """Write one log line and one metric document. They hold names of tables and numbers only."""
    outcome = {"finished": run.is_finished, "unfinished": run.unfinished, "failed": run.failed}
    logger.info("retention run", extra={"schema": SCHEMA, "days": days, "deleted": run.deleted, **outcome})
    deleted, finished = sum(run.deleted.values()), int(run.is_finished)
    write_metrics({(): {Metric.RETENTION_ROWS_DELETED: [deleted], Metric.RETENTION_FINISHED: [finished]}})


@logger.inject_lambda_context(clear_state=True, log_event=False)
def handler(_event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Run once, while Lambda's time allows. Raises SettingsError, or RetentionFailed once all tables were tried."""
    run = delete_old_rows(lambda: context.get_remaining_time_in_millis() / 1000 > BATCH_SECONDS)
    if run.failed:
        raise RetentionFailed(", ".join(run.failed))
    return {"deleted": run.deleted, "finished": run.is_finished}


if is_on_lambda():
    load(RetentionSettings)  # a wrong setting ends the start, with its name in the log
