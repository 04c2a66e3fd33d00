"""Serve the chat API over HTTP/1.1 with uvicorn, behind the AWS Lambda Web Adapter, which streams the responses.

`run.sh` runs this module with the port as its argument.
"""

import asyncio
import sys
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from chat.app import ChatProcess, app, process
from taskchat import logs
from taskchat.http.web_adapter import allow_origins, observe

GRACE_SECONDS: Final = 1
"""Seconds that a request may go on after SIGTERM. Lambda kills the process 2 s after the signal."""

KEEP_ALIVE_SECONDS: Final = 24 * 60 * 60
"""The adapter closes idle connections. If the server closed them first, as after a freeze, a request could be lost."""


def create_asgi(process: ChatProcess, app: ASGIApp) -> ASGIApp:
    """Return the app as this entry point serves it. Raises SettingsError."""
    settings = process.settings
    return observe(allow_origins(app, settings.cors_origins), settings.stream_seconds)


def create_config(port: int) -> uvicorn.Config:
    """Return uvicorn's configuration: it logs nothing by itself, because its lines may quote a person."""
    return uvicorn.Config(
        create_asgi(process, app),
        host="127.0.0.1",
        port=port,
        loop="none",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def main(port: int) -> None:
    """Serve on the loop on which the process got ready, because its connections belong to it."""
    logs.configure_server()
    asyncio.get_event_loop().run_until_complete(uvicorn.Server(create_config(port)).serve())


if __name__ == "__main__":
    main(int(sys.argv[1]))
