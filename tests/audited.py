"""A database of a test's own with the auditor's role, and log lines as the functions write them."""

import subprocess
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from dev.postgres import Postgres
from tests.conftest import migrate
from tests.test_migrations import EmptyDatabase

Line = dict[str, Any]


class AuditedDatabase(EmptyDatabase):
    """A database with the runtime role and the auditor's."""

    def __init__(self, server: Postgres) -> None:
        super().__init__(server)
        self.audit_role = f"audit_{uuid4().hex}"
        self.audit_url = self.app_url.replace(self.role, self.audit_role)
        done = self.migrate(self.audit_url)
        assert done.returncode == 0, done.stderr

    def migrate(self, audit_url: str, **others: str) -> subprocess.CompletedProcess[str]:
        """Run `make migrate` with AUDIT_DATABASE_URL."""
        with pytest.MonkeyPatch.context() as environment:
            for name, value in {"AUDIT_DATABASE_URL": audit_url, **others}.items():
                environment.setenv(name, value)
            return migrate(self.owner_url, self.app_url)

    def store(self, line: Line, at: datetime) -> None:
        """Store the record that belongs to an audit line."""
        with psycopg.connect(self.superuser_url, autocommit=True) as rows:
            rows.execute(
                "insert into tool_call (user_id, turn_id, call_id, position, conversation_id, request_id, door, tool,"
                " arguments, outcome, result, duration_ms, created_at) values (%(actor)s, %(turn_id)s, %(call_id)s, 0,"
                " %(conversation_id)s, %(request_id)s, %(door)s, %(tool)s, '{}', %(outcome)s, '{}', %(duration_ms)s,"
                " %(at)s)",
                line | {"at": at, "tool": "say_xylophone" if line["tool"] == "unknown" else line["tool"]},
            )


def timestamp(at: datetime) -> str:
    """Return the time as Powertools writes it."""
    return at.strftime("%Y-%m-%d %H:%M:%S,") + f"{at.microsecond // 1000:03}+0000"


def audit_line(at: datetime, **fields: Any) -> Line:
    """Return an audit line of that time."""
    return {
        "level": "INFO",
        "message": "tool call",
        "timestamp": timestamp(at.astimezone(UTC)),
        "service": "taskchat",
        "schema": "taskchat.audit/1",
        "request_id": uuid4().hex,
        "turn_id": str(uuid4()),
        "conversation_id": str(uuid4()),
        "actor": "ann",
        "door": "chat",
        "call_id": f"call_{uuid4().hex}",
        "tool": "delete_task",
        "tool_arguments": {"task_id": 7},
        "outcome": "ok",
        "duration_ms": 3.25,
        **fields,
    }
