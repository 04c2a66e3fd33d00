"""Define the tools that the suite calls by name, to show that the endpoint passes on every kind of result."""

import base64
import struct
import zlib
from typing import Annotated, Any, Final

import mcp_types
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.tools import Tool, ToolResult
from mcp import MCPError
from pydantic import Field

_CHUNKS: Final = (
    (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)),
    (b"IDAT", zlib.compress(b"\0\xff\0\0")),
    (b"IEND", b""),
)
PNG: Final = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in _CHUNKS
)
"""One red pixel."""
WAV: Final = b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\0\0\0\0"
"""A sound file without a sample."""

SCHEMA_TOOL: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
"""Keywords of JSON Schema 2020-12 that some servers drop."""

fixtures: Final = FastMCP("conformance fixtures", mask_error_details=True, dereference_schemas=False)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _image() -> mcp_types.ImageContent:
    return mcp_types.ImageContent(type="image", data=_encoded(PNG), mime_type="image/png")


def _resource(uri: str, mime_type: str, text: str) -> mcp_types.EmbeddedResource:
    contents = mcp_types.TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    return mcp_types.EmbeddedResource(type="resource", resource=contents)


@fixtures.tool
def test_simple_text() -> str:
    """Return text."""
    return "This is a simple text response for testing."


@fixtures.tool
def test_image_content() -> ToolResult:
    """Return an image."""
    return ToolResult(content=[_image()])


@fixtures.tool
def test_audio_content() -> ToolResult:
    """Return a sound."""
    return ToolResult(content=[mcp_types.AudioContent(type="audio", data=_encoded(WAV), mime_type="audio/wav")])


@fixtures.tool
def test_embedded_resource() -> ToolResult:
    """Return a resource within the result."""
    return ToolResult(content=[_resource("test://embedded-resource", "text/plain", "This is an embedded resource.")])


@fixtures.tool
def test_multiple_content_types() -> ToolResult:
    """Return three kinds of content in one result."""
    text = mcp_types.TextContent(type="text", text="Multiple content types test:")
    resource = _resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
    return ToolResult(content=[text, _image(), resource])


@fixtures.tool
def test_error_handling() -> str:
    """Fail. Raises ToolError."""
    raise ToolError("This tool intentionally returns an error for testing")


@fixtures.tool
def test_missing_capability() -> str:
    """Refuse a client that cannot sample. Raises MCPError."""
    required: dict[str, dict[str, Any]] = {"requiredCapabilities": {"sampling": {}}}
    raise MCPError(mcp_types.MISSING_REQUIRED_CLIENT_CAPABILITY, "The client cannot sample", required)


@fixtures.tool
def test_custom_headers(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
    """Return the argument, which the client repeats in a header."""
    return region


class _SchemaTool(Tool):
    """A tool whose schema is written by hand, not derived from a function."""

    async def run(self, arguments: dict[str, Any]) -> ToolResult:
        """Return the arguments."""
        return ToolResult(structured_content=arguments)


fixtures.add_tool(
    _SchemaTool(
        name="json_schema_2020_12_tool", description="Tool with JSON Schema 2020-12 features", parameters=SCHEMA_TOOL
    )
)
