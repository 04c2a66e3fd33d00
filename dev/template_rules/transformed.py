"""Transform template.yaml as CloudFormation does, with SAM's own translator."""

from typing import Any

import boto3
from samtranslator.parser.parser import Parser  # type: ignore[import-untyped]
from samtranslator.translator.translator import Translator  # type: ignore[import-untyped]
from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-untyped]

from dev import state

Resource = dict[str, Any]


def template() -> Resource:
    """Return the template as `sam package` writes it, with uploaded sources."""
    document: Resource = yaml_parse((state.ROOT / "template.yaml").read_text())
    document["Globals"]["Function"]["CodeUri"] = "s3://bucket/functions"
    document["Resources"]["SharedLayer"]["Properties"]["ContentUri"] = "s3://bucket/layer"
    return document


def translate(document: Resource, parameters: dict[str, str] | None = None) -> Resource:
    """Return the CloudFormation template that SAM makes of it."""
    session = boto3.Session(region_name="eu-west-1")
    translator = Translator(managed_policy_map={}, sam_parser=Parser(), boto_session=session)
    translated: Resource = translator.translate(document, parameters or {})
    return translated
