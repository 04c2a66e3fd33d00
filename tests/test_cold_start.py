"""A cold start: what it imports and what it does not, what it does ahead, and what a snapshot must not hold."""

import gc
import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from taskchat import imports
from tests.conftest import ROOT

NAIVE = "agents, fastmcp, fastapi, mangum, sqlmodel, pg8000, aws_lambda_powertools"
"""What somebody would import who wrote the same service without a thought of this."""

NEVER = {
    "agents.realtime": "a conversation by voice",
    "agents.repl": "a terminal",
    "agents.voice": "a conversation by voice",
    "boto3": "for those who keep a secret, and then only once all else is imported",
    "botocore.session": "the same",
    "docket": "FastMCP's queue of jobs",
    "email_validator": "no address of anybody's is read",
    "fastmcp.client": "the tools are called directly",
    "joserfc": "tokens are judged in auth.py",
    "keyring": "FastMCP's, for the clients of its own",
    "openai.lib.streaming": "answers come whole",
    "openai.resources.beta": "sold by the vendor, and not used",
    "openai.types.eval_create_params": "the same",
    "openai.types.video": "the same",
    "requests": "there is one HTTP client",
    "sqlalchemy.dialects.postgresql.asyncpg": "there is one driver",
    "sqlalchemy.dialects.sqlite": "there is one database",
}


def fresh(code: str, *options: str) -> Any:
    """What a new process prints, parsed: it has the environment of a test, and every warning is an error."""
    environment = {
        "PYTHONPATH": f"{ROOT / 'shared'}:{ROOT / 'functions'}",
        "DATABASE_URL": "postgresql://u:p@localhost/d",
        "OPENAI_API_KEY": "sk-nobody",
        "AUTH_ISSUER": "https://auth.example.com",
        "AUTH_AUDIENCE": "https://auth.example.com",
        "AUTH_JWKS_JSON": '{"keys": []}',
        "MCP_RESOURCE_URL": "https://api.example.com/mcp",
        "POWERTOOLS_METRICS_NAMESPACE": "taskchat",
    }
    command = [sys.executable, "-W", "error", *options, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def imported(what: str) -> set[str]:
    """The modules that a process has, once it has imported this."""
    return set(fresh(f"import {what}, sys, json; print(json.dumps(sorted(sys.modules)))"))


@pytest.fixture(scope="module")
def chat() -> set[str]:
    """The modules of the chat function."""
    return imported("chat.app")


class TestImports:
    """What costs most of a cold start."""

    @pytest.mark.parametrize("module", sorted(NEVER))
    def test_what_no_request_uses_is_not_imported(self, chat: set[str], module: str) -> None:
        """Neither a module that is left out, nor one that nobody should begin to need."""
        assert "chat.app" in chat
        assert not {name for name in chat if name == module or name.startswith(f"{module}.")}

    def test_neither_function_imports_many_more_modules_than_their_dependencies_alone(self, chat: set[str]) -> None:
        """Ours, the SDK's that a turn needs and FastMCP's server come on top; it was a fifth more before."""
        naive = imported(NAIVE)
        assert len(chat) <= 1.06 * len(naive)
        assert len(imported("mcp_tools.app")) <= 0.75 * len(naive)

    @pytest.mark.parametrize("module", imports.LEFT_OUT)
    def test_what_is_left_out_is_there_to_be_left_out(self, module: str) -> None:
        """A dependency that has moved or dropped a module makes its line on the list a dead one."""
        assert find_spec(module)

    @pytest.mark.parametrize("package", ["chat", "mcp_tools"])
    def test_nothing_of_it_stays(self, package: str) -> None:
        """After the import, garbage is collected, schemas are built at once, and what was left out can be imported."""
        code = f"""
import {package}, gc, json, sys
import email_validator, openai.types.video, pydantic
from pydantic import v1  # by its parent's attribute, not by its name
class Built(pydantic.BaseModel): pass
print(json.dumps([gc.isenabled(), gc.get_freeze_count() > 100_000, Built.__pydantic_complete__,
    pydantic.TypeAdapter(list[int]).pydantic_complete, "defer_build" in pydantic.BaseModel.model_config,
    callable(email_validator.validate_email), v1.BaseModel.__module__, openai.types.video.Video.__mro__[1].__name__]))
"""
        assert fresh(code) == [True, True, True, True, False, True, "pydantic.v1.main", "BaseModel"]

    def test_what_is_left_out_is_missed_aloud(self) -> None:
        """Whoever makes one of its classes after all is told which."""
        with imports.lean():
            hollow = imports._Hollow()
            spec = hollow.find_spec("joserfc.jws", None)
            assert spec is not None
            module = type(sys)("joserfc.jws")
            hollow.exec_module(module)
        with pytest.raises(imports.LeftOutError, match=r"joserfc\.jws\.JWS"):
            module.JWS()

    def test_an_error_inside_leaves_nothing_behind(self) -> None:
        """An import that fails does not leave a process without its collector."""
        finders = list(sys.meta_path)
        with pytest.raises(ZeroDivisionError), imports.lean():
            1 / 0  # noqa: B018
        assert (gc.isenabled(), sys.meta_path) == (True, finders)
        assert "defer_build" not in BaseModel.model_config
        assert TypeAdapter(list[int]).pydantic_complete
