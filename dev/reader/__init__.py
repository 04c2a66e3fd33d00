"""Serve the API's description at /openapi.json, and a page to read it at /reference."""

from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import BaseRoute, Mount, Route

from dev.page import HEADERS, PageFiles

FILES: Final = Path(__file__).parent / "files"


def routes(api: FastAPI) -> list[BaseRoute]:
    """Return the routes for the description of this API."""

    async def describe(_request: Request) -> JSONResponse:
        return JSONResponse(api.openapi(), headers=HEADERS)

    async def read(_request: Request) -> FileResponse:
        return FileResponse(FILES / "index.html", headers=HEADERS)

    return [
        Route("/openapi.json", describe),
        Route("/reference", read),
        Mount("/reference", PageFiles(directory=FILES)),
    ]
