"""Serve the files of `page/` as they are, read at each request: an edit shows at the next reload."""

import os
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from dev.state import ROOT
from taskchat.errors import NotFound
from taskchat.http.problems import problem_response

PAGE: Final = ROOT / "page"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"
    "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    "; require-trusted-types-for 'script'; trusted-types 'none'"  # no script makes elements from text
)
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def panel() -> Path | None:
    """Return the module that the domain's folder brings, or None if it brings none."""
    return next((ROOT / "shared" / "taskchat").glob("*/panel.js"), None)


class PageFiles(StaticFiles):
    """A directory of the page, with the page's headers."""

    def file_response(
        self, full_path: os.PathLike[str] | str, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return a file. A browser asks for it again at each reload."""
        return FileResponse(full_path, status_code, HEADERS, stat_result=stat_result)


def _file(name: str) -> Route:
    async def send(_request: Request) -> FileResponse:
        return FileResponse(PAGE / name, headers=HEADERS)

    return Route("/" if name == "index.html" else f"/{name}", send)


async def _config(_request: Request) -> JSONResponse:
    """Return the page's settings for this server."""
    settings = {"title": "taskchat", "api": "", "auth": None, "development": True}
    return JSONResponse({**settings, "panel": "./panel.js" if panel() else None}, headers=HEADERS)


async def _panel(_request: Request) -> Response:
    found = panel()
    return FileResponse(found, headers=HEADERS) if found else problem_response(NotFound())


routes: Final[list[BaseRoute]] = [
    *(_file(path.name) for path in PAGE.iterdir() if path.is_file()),
    *(Mount(f"/{path.name}", PageFiles(directory=path)) for path in PAGE.iterdir() if path.is_dir()),
    Route("/config.json", _config),
    Route("/panel.js", _panel),
]
