"""Parse a database's URL as libpq does. Error texts quote nothing of it."""

import re
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qs, unquote_to_bytes, urlsplit

DEFAULT_PORT: Final = 5432
SYSTEM: Final = "system"
"""The file name by which libpq means the authorities that the system trusts."""

_SCHEME: Final = re.compile(r"postgres(ql)?(\+\w+)?")
_HOST: Final = re.compile(r"[^\s,/%]+")
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_SECONDS: Final = re.compile(r"[0-9]{1,6}")
_TLS_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_BINDINGS: Final = ("disable", "prefer", "require")
_SHAPE: Final = "a database URL looks like postgresql://user:password@host/database"


@dataclass(frozen=True)
class PostgresUrl:
    """The parts of a database URL: server, role, and how the connection is secured."""

    host: str
    port: int
    user: str
    password: str
    database: str
    has_tls: bool
    """Off only when the URL says so. Certificates are verified by every other mode."""
    authorities: str | None
    """A file of certificates to trust, or None for those that the system trusts."""
    connect_timeout: int
    """Seconds; 0 where the URL names none, or asks for no limit."""
    needs_channel_binding: bool


def parse(url: str) -> PostgresUrl:
    """Parse a URL. Raises ValueError for one that cannot work, with a text that quotes nothing of it."""
    parts = _split(url)
    parameters = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    has_tls = _choice(parameters, "sslmode", _TLS_MODES, "require") != "disable"
    return PostgresUrl(
        host=_host(parts),
        port=_port(parts),
        user=_decoded(parts.username or ""),
        password=_decoded(parts.password or ""),
        database=_decoded(parts.path[1:]),
        has_tls=has_tls,
        authorities=_authorities(parameters.get("sslrootcert", SYSTEM)) if has_tls else None,
        connect_timeout=_seconds(parameters.get("connect_timeout", "0")),
        needs_channel_binding=_choice(parameters, "channel_binding", _BINDINGS, "prefer") == "require",
    )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:  # whose own words quote the URL
        raise ValueError(_SHAPE) from None
    if not _SCHEME.fullmatch(parts.scheme) or not parts.hostname or not parts.username or len(parts.path) < 2:
        raise ValueError(f"{_SHAPE}, with %40 for @, %2F for / and so on inside a part")
    return parts


def _host(parts: SplitResult) -> str:
    host = str(parts.hostname)
    try:
        is_name = bool(_HOST.fullmatch(host) and host.encode("idna"))  # as sockets encode it
    except UnicodeError:  # whose own words may quote the host
        is_name = False
    if not is_name:
        raise ValueError("the host must be one name or address")
    return host


def _port(parts: SplitResult) -> int:
    try:
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:  # as above
        port = 0
    if not port:
        raise ValueError("the port must be a number from 1 to 65535")
    return port


def _decoded(part: str) -> str:
    if _BROKEN_ESCAPE.search(part):
        raise ValueError("a % in a user, password or database must be written %25")
    try:
        return unquote_to_bytes(part).decode()
    except ValueError:  # as above
        raise ValueError("user, password and database must be text in UTF-8") from None


def _choice(parameters: dict[str, str], name: str, known: tuple[str, ...], default: str) -> str:
    value = parameters.get(name, default)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}")
    return value


def _seconds(value: str) -> int:
    if not _SECONDS.fullmatch(value):
        raise ValueError("connect_timeout must be a whole number of seconds")
    return int(value)


def _authorities(file: str) -> str | None:
    if file == SYSTEM:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except (OSError, ValueError):  # an SSLError is an OSError
        raise ValueError("sslrootcert must be a file of certificates, or system") from None
    return file
