"""The environment, parsed once, with a secret that wins over it."""

import ast
import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from chat.app import ChatProcess
from taskchat.settings import MigrationSettings, Settings, SettingsError, load
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which only the database is known."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@h/d")


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Secrets Manager with one secret in it, named by APP_SECRET_ARN; call it with the secret's text."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    from aws_lambda_powertools.utilities import parameters

    with mock_aws():
        client = boto3.client("secretsmanager")

        def keep(text: str) -> None:
            arn = client.create_secret(Name="taskchat", SecretString=text)["ARN"]
            monkeypatch.setenv("APP_SECRET_ARN", arn)

        yield keep
    parameters.clear_caches()


def test_the_database_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be done without is named when it is missing."""
    monkeypatch.delenv("DATABASE_URL")
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        load(Settings)


def test_a_variable_set_to_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template's empty parameter leaves the default alone."""
    monkeypatch.setenv("MODEL", "")
    assert load(Settings).model


def test_a_bad_value_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable and does not repeat what it held."""
    monkeypatch.setenv("MODEL_API", "canary")
    with pytest.raises(SettingsError, match="MODEL_API") as raised:
        load(Settings)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("value", ["canary", "[]", "null", '{"keys": 1}', "{}"])
def test_a_broken_static_key_set_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """At start, not at the first token."""
    monkeypatch.setenv("AUTH_JWKS_JSON", value)
    with pytest.raises(SettingsError, match="AUTH_JWKS_JSON"):
        load(Settings)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Printing the settings gives nothing away."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    assert "canary" not in repr(load(Settings))


def test_the_secret_wins(monkeypatch: pytest.MonkeyPatch, secret: Any) -> None:
    """What stands in both comes from the secret; what stands in one, from there."""
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    monkeypatch.setenv("MODEL", "from the environment")
    secret(json.dumps({"OPENAI_API_KEY": "from the secret", "DATABASE_URL": "postgresql://secret/d"}))
    settings = load(Settings)
    assert settings.openai_api_key.get_secret_value() == "from the secret"
    assert settings.database_url.get_secret_value() == "postgresql://secret/d"
    assert settings.model == "from the environment"


def test_migrations_read_the_secret_too(secret: Any) -> None:
    """The owner's URL may lie beside the runtime role's."""
    secret(json.dumps({"MIGRATION_DATABASE_URL": "postgresql://owner/d"}))
    assert load(MigrationSettings).migration_database_url.get_secret_value() == "postgresql://owner/d"


@pytest.mark.parametrize("text", ["no JSON", "[1]", '"text"'])
def test_a_secret_that_is_no_object_is_refused(secret: Any, text: str) -> None:
    """In a sentence, without its text."""
    secret(text)
    with pytest.raises(SettingsError) as raised:
        load(Settings)
    assert text not in str(raised.value)


def test_a_secret_that_cannot_be_read_stops_the_start(monkeypatch: pytest.MonkeyPatch, secret: Any) -> None:
    """An ARN of nothing is an error, not an empty secret."""
    monkeypatch.setenv("APP_SECRET_ARN", "arn:aws:secretsmanager:eu-central-1:123456789012:secret:gone")
    with pytest.raises(SettingsError, match="APP_SECRET_ARN"):
        load(Settings)


def test_only_the_settings_read_the_environment() -> None:
    """No other module that ships names os.environ or getenv."""
    for path in [*ROOT.glob("functions/**/*.py"), *ROOT.glob("shared/taskchat/**/*.py")]:
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert path.stem == "settings" or not names & {"environ", "getenv"}, path


def test_a_secret_that_was_rotated_is_read_again(secret: Any) -> None:
    """After a reset, as before a snapshot. Until then it is read once."""
    process = ChatProcess()
    secret('{"OPENAI_API_KEY": "old"}')
    process.reset()
    assert process.settings.openai_api_key.get_secret_value() == "old"
    rotated = '{"OPENAI_API_KEY": "new"}'
    boto3.client("secretsmanager").put_secret_value(SecretId="taskchat", SecretString=rotated)
    assert process.settings.openai_api_key.get_secret_value() == "old"
    process.reset()
    assert process.settings.openai_api_key.get_secret_value() == "new"
    process.reset()
