"""Check the settings and the secret: their names, never their values."""

import json
import math
import string
from typing import Final

from pydantic import ValidationError

from operations.checks.deployment import LOCAL_HOSTS, Deployment, Skipped, Wrong
from taskchat.postgres_url import parse
from taskchat.settings import MigrationSettings, RetentionSettings, Settings

KNOWN: Final = frozenset(
    name.upper() for model in (Settings, RetentionSettings, MigrationSettings) for name in model.model_fields
) | {"AUDIT_DATABASE_URL"}

REQUIRED: Final = ("DATABASE_URL", "AUTH_ISSUER", "AUTH_AUDIENCE")

MIN_BITS: Final = 60
"""Neon refuses a weaker password of a role that SQL makes."""


def check_secret(deployment: Deployment) -> str:
    """Read the secret that APP_SECRET_ARN names, and keep it for the other checks."""
    arn = deployment.variables.get("APP_SECRET_ARN")
    if not arn:
        raise Skipped("APP_SECRET_ARN is not set: the environment holds the settings")
    secret = _parse(_read(deployment, arn))
    deployment.secret = secret
    if unknown := sorted(secret.keys() - KNOWN):
        raise Wrong(
            f"taskchat knows no setting named {', '.join(unknown)}", "rename or remove these keys of the secret"
        )
    return f"it is a JSON object with {', '.join(sorted(secret))}"


def _read(deployment: Deployment, arn: str) -> str:
    try:
        return deployment.read_secret(arn)
    except Exception as error:
        reason = getattr(error, "response", {}).get("Error", {}).get("Code", type(error).__name__)
        raise Wrong(
            f"it cannot be read: {reason}",
            "compare AppSecretArn in samconfig.toml with the secret's ARN and region, and allow "
            "secretsmanager:GetSecretValue for your own credentials",
        ) from None


def _parse(text: str) -> dict[str, str]:
    try:
        secret = json.loads(text)
    except ValueError:
        secret = None
    if not isinstance(secret, dict):
        raise Wrong("it is not a JSON object", 'store {"DATABASE_URL": "…", "OPENAI_API_KEY": "…"} in it')
    return secret


def check_settings(deployment: Deployment) -> str:
    """Parse the settings as a function does at its start."""
    values = deployment.values
    key = () if values.get("OPENAI_BASE_URL") else ("OPENAI_API_KEY",)  # a model of one's own may need no key
    if missing := [name for name in (*REQUIRED, *key) if not values.get(name)]:
        raise Wrong(f"{', '.join(missing)} not set", "set them in samconfig.toml or in the secret (docs/deploy.md)")
    if not values.get("AUTH_JWKS_URL") and not values.get("AUTH_JWKS_JSON"):
        raise Wrong("neither AUTH_JWKS_URL nor AUTH_JWKS_JSON is set", "set AuthJwksUrl in samconfig.toml")
    try:
        Settings.model_validate(values)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise Wrong("; ".join(wrong), "correct these settings in samconfig.toml or in the secret") from None
    return f"{len(KNOWN & values.keys())} settings are set, and all are valid"


def check_passwords(deployment: Deployment) -> str:
    """Estimate the strength of the passwords in the database URLs."""
    names = [name for name in sorted(KNOWN) if name.endswith("DATABASE_URL") and deployment.values.get(name)]
    if not names:
        raise Skipped("no database URL is set")
    weak = [name for name in names if bits(parse(deployment.values[name]).password) < MIN_BITS]
    if weak:
        raise Wrong(
            f"the password in {', '.join(weak)} has less than {MIN_BITS} bits, and Neon refuses it",
            "make one with `openssl rand -hex 24`, and give it to the role with `alter role … password '…'`",
        )
    return f"strong enough for Neon in {', '.join(names)}"


def bits(password: str) -> float:
    """Return the bits of a random password with these kinds of characters. A repeated character adds little."""
    hexadecimal = set(password) <= set(string.hexdigits.lower())
    kinds = [string.digits, string.ascii_lowercase, string.ascii_uppercase]
    alphabet = 16 if hexadecimal else sum(len(kind) for kind in kinds if set(kind) & set(password))
    length = min(len(password), 3 * len(set(password)))
    return length * math.log2(max(alphabet, 10))


def check_pooled(deployment: Deployment) -> str:
    """Check that Neon's host in DATABASE_URL is the pooled one, and in MIGRATION_DATABASE_URL the direct one."""
    host = deployment.database("DATABASE_URL").host
    direct = deployment.values.get("MIGRATION_DATABASE_URL")
    if direct and is_neon_pooler(parse(direct).host):
        raise Wrong(
            "MIGRATION_DATABASE_URL names the pooled endpoint",
            "remove `-pooler` from the host: a migration needs a session",
        )
    if not host.endswith(".neon.tech"):
        raise Skipped(f"{'this machine' if host in LOCAL_HOSTS else 'the host'} is not Neon: see the check `pooler`")
    if not is_neon_pooler(host):
        raise Wrong("DATABASE_URL names the direct endpoint", "add `-pooler` to the first part of the host")
    return "DATABASE_URL names Neon's pooled endpoint"


def is_neon_pooler(host: str) -> bool:
    """Return whether this names a pooled endpoint of Neon, such as `ep-a-b-pooler.eu-central-1.aws.neon.tech`."""
    return host.endswith(".neon.tech") and host.partition(".")[0].endswith("-pooler")


def check_region(deployment: Deployment) -> str:
    """Compare the region in Neon's host name with the functions' region."""
    host = deployment.database("DATABASE_URL").host
    if not host.endswith(".aws.neon.tech") or not deployment.region:
        raise Skipped("the region of the database or of the functions is not known")
    found = host.split(".")[-4]
    if found != deployment.region:
        raise Wrong(
            f"the database is in {found}, and the functions in {deployment.region}",
            "move one of them: each transaction waits for the distance (docs/scaling.md)",
        )
    return f"database and functions are in {found}"


def check_tls(deployment: Deployment) -> str:
    """Check that the URL asks for TLS. taskchat then always verifies the certificate."""
    url = deployment.database("DATABASE_URL")
    if url.has_tls:
        binding = "requires" if url.needs_channel_binding else "does not require"
        return f"on, with verification; the URL {binding} channel binding"
    if url.host in LOCAL_HOSTS:
        raise Skipped("off, to a database on this machine")
    raise Wrong(
        "sslmode=disable sends everything in clear text",
        "write sslmode=require&channel_binding=require in DATABASE_URL",
    )
