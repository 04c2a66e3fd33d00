"""Settings come from the environment once, and from a secret, which has precedence."""

import ast
import json
import traceback
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from chat.app import ChatProcess
from taskchat.settings import (
    MAY_BE_EMPTY,
    MigrationSettings,
    Settings,
    SettingsError,
    load,
)
from taskchat.tasks import toolset
from tests.conftest import ROOT
from tests.test_cold_start import fresh


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set DATABASE_URL only."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@h/d")


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a function that stores a secret in Secrets Manager and names it in APP_SECRET_ARN."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    from aws_lambda_powertools.utilities import parameters

    with mock_aws():
        client = boto3.client("secretsmanager")

        def store(text: str) -> None:
            arn = client.create_secret(Name="taskchat", SecretString=text)["ARN"]
            monkeypatch.setenv("APP_SECRET_ARN", arn)

        yield store
    parameters.clear_caches()


def test_the_database_url_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable."""
    monkeypatch.delenv("DATABASE_URL")
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        load(Settings)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template's empty parameter leaves the default."""
    monkeypatch.setenv("MODEL", "")
    assert load(Settings).model


def test_an_empty_effort_is_left_to_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """An effort that is not set is low."""
    assert load(Settings).reasoning_effort == "low"
    monkeypatch.setenv("REASONING_EFFORT", "")
    assert load(Settings).reasoning_effort == ""


def test_only_some_variables_may_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each other setting, empty is the same as not set."""
    unset = load(Settings)
    for name in {field.upper() for field in Settings.model_fields} - MAY_BE_EMPTY - {"DATABASE_URL"}:
        monkeypatch.setenv(name, "")
    assert load(Settings) == unset


def test_an_unknown_effort_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable."""
    monkeypatch.setenv("REASONING_EFFORT", "heroic")
    with pytest.raises(SettingsError, match="REASONING_EFFORT"):
        load(Settings)


def test_an_invalid_value_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable, and does not repeat its value."""
    monkeypatch.setenv("MODEL_API", "canary")
    with pytest.raises(SettingsError, match="MODEL_API") as raised:
        load(Settings)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("value", ["canary", "[]", "null", '{"keys": 1}', "{}"])
def test_a_broken_static_key_set_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """It stops the start, and not the first request with a token."""
    monkeypatch.setenv("AUTH_JWKS_JSON", value)
    with pytest.raises(SettingsError, match="AUTH_JWKS_JSON"):
        load(Settings)


WRONG_URLS = {
    "no URL": "canary",
    "another scheme": "mysql://canary:canary@h/d",
    "no host": "postgresql://canary:canary@/d",
    "no host but a port": "postgresql://canary:canary@:5432/d",
    "no user": "postgresql://h/canary",
    "no database": "postgresql://canary:canary@h",
    "no database but a slash": "postgresql://canary:canary@h/?sslmode=require",
    "a port that is a word": "postgresql://canary:canary@h:canary/d",
    "a port of zero": "postgresql://canary:canary@h:0/d",
    "a port too high": "postgresql://canary:canary@h:99999/d",
    "a port below zero": "postgresql://canary:canary@h:-1/d",
    "two hosts": "postgresql://canary:canary@h,canary/d",
    "two hosts with ports": "postgresql://canary:canary@h:1,canary:2/d",
    "a socket for a host": "postgresql://canary:canary@%2Fcanary/d",
    "a host that is none": "postgresql://canary:canary@[canary/d",
    "a host with two dots in a row": "postgresql://canary:canary@canary..h/d",
    "a host with a part that is too long": f"postgresql://canary:canary@canary{'h' * 60}.h/d",
    "a host that shows nothing": "postgresql://canary:canary@\u200b/d",
    "a host of letters that look like others": "postgresql://canary:canary@h\u2100canary/d",
    "a slash in the password": "postgresql://u:can/ary@h/d",
    "a hash in the password": "postgresql://u:can#ary@h/d",
    "a question mark in the password": "postgresql://u:can?ary@h/d",
    "a percent sign in the password": "postgresql://u:canary%@h/d",
    "a percent sign in the user": "postgresql://canary%zz:p@h/d",
    "a percent sign in the database": "postgresql://u:p@h/canary%2",
    "NUL in the password": "postgresql://u:canary%00@h/d",
    "a password that is no UTF-8": "postgresql://u:canary%ff@h/d",
    "a timeout that is a word": "postgresql://u:p@h/d?connect_timeout=canary",
    "a timeout below zero": "postgresql://u:p@h/d?connect_timeout=-1",
    "a fraction of a timeout": "postgresql://u:p@h/d?connect_timeout=1.5",
    "a timeout that is no number": "postgresql://u:p@h/d?connect_timeout=nan",
    "a timeout without end": "postgresql://u:p@h/d?connect_timeout=inf",
    "a timeout of too many seconds": "postgresql://u:p@h/d?connect_timeout=99999999999999999999",
    "an unknown mode of TLS": "postgresql://u:p@h/d?sslmode=canary",
    "a mode in capitals": "postgresql://u:p@h/d?sslmode=DISABLE",
    "no file of authorities": "postgresql://u:p@h/d?sslrootcert=/canary.pem",
    "a directory of authorities": "postgresql://u:p@h/d?sslrootcert=/",
    "a file without authorities": f"postgresql://u:p@h/d?sslrootcert={__file__}",
    "an unknown channel binding": "postgresql://u:p@h/d?channel_binding=canary",
    "bytes that are no text": "postgresql://u:canary\udcff@h/d",
}
"""Ways in which a database URL can be wrong. The word "canary" must not be shown."""


@pytest.mark.parametrize("wrong", WRONG_URLS)
class TestDatabaseUrl:
    """A wrong URL stops the start, before anything connects. The error names the variable without its value."""

    def test_a_wrong_url_stops_the_start(self, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
        """No part is shown, because one of them is the password."""
        monkeypatch.setenv("DATABASE_URL", WRONG_URLS[wrong])
        with pytest.raises(SettingsError, match="DATABASE_URL: ") as raised:
            load(Settings)
        assert "canary" not in "".join(traceback.format_exception(raised.value))

    @pytest.mark.parametrize("name", ["MIGRATION_DATABASE_URL", "DATABASE_URL"])
    def test_a_wrong_url_stops_a_migration(self, monkeypatch: pytest.MonkeyPatch, wrong: str, name: str) -> None:
        """The error names the wrong one of two URLs."""
        monkeypatch.setenv("MIGRATION_DATABASE_URL", "postgresql://u:p@h/d")
        monkeypatch.setenv(name, WRONG_URLS[wrong])
        with pytest.raises(SettingsError, match=f": {name}: ") as raised:
            load(MigrationSettings)
        assert "canary" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u:p@h/d",
        "postgresql://u@h:/d",
        "postgresql://u:p@[::1]:5432/d",
        "postgresql://u%40x:p%25%2F%C3%A9@h-1.example.com:65535/d%20e?sslmode=verify-full&sslrootcert=system",
        *(f"postgresql://u:p@h/d?sslmode={mode}" for mode in ("disable", "allow", "prefer", "require", "verify-ca")),
        "postgresql://u:p@h/d?connect_timeout=0",
        "postgresql://u:p@h/d?connect_timeout=10&channel_binding=disable&options=endpoint%3Dep-cool&pgbouncer=true",
        "postgresql://u:p@h/d?sslmode=disable&sslrootcert=/none.pem",
    ],
)
def test_a_url_for_libpq_is_accepted(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Unknown parameters are allowed."""
    monkeypatch.setenv("DATABASE_URL", url)
    assert load(Settings).database_url.get_secret_value() == url


@pytest.mark.parametrize("package", ["chat", "mcp_tools"])
@pytest.mark.parametrize("wrong", ["a port too high", "a timeout that is a word", "no file of authorities"])
def test_on_lambda_a_wrong_url_stops_the_start(package: str, wrong: str) -> None:
    """The import of the handler fails, and the platform's log has the variable's name."""
    code = f"""
import json
try:
    import {package}
except RuntimeError as error:
    print(json.dumps([type(error).__name__, "DATABASE_URL: " in str(error), "canary" in str(error)]))
"""
    known = {"DATABASE_URL": WRONG_URLS[wrong], "AWS_LAMBDA_RUNTIME_API": "localhost"}
    assert fresh(code, **known) == ["SettingsError", True, False]


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed settings do not contain them."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    assert "canary" not in repr(load(Settings))


def test_the_secret_has_precedence(monkeypatch: pytest.MonkeyPatch, secret: Any) -> None:
    """A variable that only the environment sets comes from there."""
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    monkeypatch.setenv("MODEL", "from the environment")
    secret(json.dumps({"OPENAI_API_KEY": "from the secret", "DATABASE_URL": "postgresql://u:p@secret/d"}))
    settings = load(Settings)
    assert settings.openai_api_key.get_secret_value() == "from the secret"
    assert settings.database_url.get_secret_value() == "postgresql://u:p@secret/d"
    assert settings.model == "from the environment"


def test_migrations_read_the_secret_too(secret: Any) -> None:
    """The secret may hold the owner's URL beside the runtime role's."""
    secret(json.dumps({"MIGRATION_DATABASE_URL": "postgresql://owner:p@h/d"}))
    assert load(MigrationSettings).migration_database_url.get_secret_value() == "postgresql://owner:p@h/d"


@pytest.mark.parametrize("text", ["no JSON", "[1]", '"text"'])
def test_a_secret_that_is_no_object_is_refused(secret: Any, text: str) -> None:
    """The error does not repeat its text."""
    secret(text)
    with pytest.raises(SettingsError) as raised:
        load(Settings)
    assert text not in str(raised.value)


def test_an_unreadable_secret_stops_the_start(monkeypatch: pytest.MonkeyPatch, secret: Any) -> None:
    """A missing secret is no empty secret."""
    monkeypatch.setenv("APP_SECRET_ARN", "arn:aws:secretsmanager:eu-central-1:123456789012:secret:gone")
    with pytest.raises(SettingsError, match="APP_SECRET_ARN"):
        load(Settings)


def test_only_the_settings_read_the_environment() -> None:
    """No other module that ships uses os.environ or getenv."""
    for path in [*ROOT.glob("functions/**/*.py"), *ROOT.glob("shared/taskchat/**/*.py")]:
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert path.stem == "settings" or not names & {"environ", "getenv"}, path


def test_a_rotated_secret_is_read_again(secret: Any) -> None:
    """The process reads it once, and again after a reset, such as the one before a snapshot."""
    process = ChatProcess(toolset)
    secret('{"OPENAI_API_KEY": "old"}')
    process.reset()
    assert process.settings.openai_api_key.get_secret_value() == "old"
    rotated = '{"OPENAI_API_KEY": "new"}'
    boto3.client("secretsmanager").put_secret_value(SecretId="taskchat", SecretString=rotated)
    assert process.settings.openai_api_key.get_secret_value() == "old"
    process.reset()
    assert process.settings.openai_api_key.get_secret_value() == "new"
    process.reset()
