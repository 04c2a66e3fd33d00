"""What template.yaml promises, read from what CloudFormation would be given: the output of SAM's own translator."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import boto3
import pytest
from annotated_types import Lt
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

from chat.turn import SCHEMA as USAGE_SCHEMA
from chat.usage import Usage
from taskchat.settings import Settings
from taskchat.toolcalls.audit_log import SCHEMA

ROOT = Path(__file__).parent.parent
GATEWAY_SECONDS = 30
PREFIX = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:"

Resource = dict[str, Any]


def template() -> Resource:
    """The template as `sam package` hands it over: sources uploaded."""
    document: Resource = yaml_parse((ROOT / "template.yaml").read_text())
    document["Globals"]["Function"]["CodeUri"] = "s3://bucket/functions"
    document["Resources"]["SharedLayer"]["Properties"]["ContentUri"] = "s3://bucket/layer"
    return document


def translate(document: Resource, parameters: dict[str, str] | None = None) -> Resource:
    """The CloudFormation template that SAM makes of it."""
    session = boto3.Session(region_name="eu-west-1")
    translator = Translator(managed_policy_map={}, sam_parser=Parser(), boto_session=session)
    translated: Resource = translator.translate(document, parameters or {})
    return translated


@pytest.fixture(scope="module")
def resources() -> Resource:
    """All resources by their names."""
    found: Resource = translate(template())["Resources"]
    return found


def of_type(resources: Resource, kind: str) -> dict[str, Resource]:
    """The properties of the resources of one type."""
    return {name: each["Properties"] for name, each in resources.items() if each["Type"] == f"AWS::{kind}"}


def published(resources: Resource) -> set[str]:
    """The versions of the functions that a deployment would publish, by names that change with their content."""
    return set(of_type(resources, "Lambda::Version"))


@pytest.fixture(params=["ChatFunction", "McpToolsFunction"])
def function(request: pytest.FixtureRequest, resources: Resource) -> Resource:
    """Each of the two functions."""
    return of_type(resources, "Lambda::Function")[request.param]


def test_there_are_two_functions_and_their_handlers_are_the_packages(resources: Resource) -> None:
    """The same import names on Lambda as in the tests, with no path hacks."""
    handlers = {name: each["Handler"] for name, each in of_type(resources, "Lambda::Function").items()}
    assert handlers == {"ChatFunction": "chat.app.handler", "McpToolsFunction": "mcp_tools.app.handler"}


def test_runtime_and_architecture_are_those_the_layer_is_built_for(function: Resource, resources: Resource) -> None:
    """Compiled wheels and bytecode fit one Python on one machine."""
    [layer] = of_type(resources, "Lambda::LayerVersion").values()
    assert [function["Runtime"]] == layer["CompatibleRuntimes"] == ["python3.13"]
    assert function["Architectures"] == layer["CompatibleArchitectures"] == ["x86_64"]


def test_functions_share_the_layer(function: Resource, resources: Resource) -> None:
    """The taskchat package exists once."""
    [layer] = of_type(resources, "Lambda::LayerVersion")
    assert function["Layers"] == [{"Ref": layer}]


def test_a_function_ends_before_the_gateway_gives_up(function: Resource) -> None:
    """Nobody would hear an answer given later."""
    assert function["Timeout"] < GATEWAY_SECONDS


def test_traffic_goes_to_the_published_version(resources: Resource) -> None:
    """Only a published version has a snapshot, and only an alias can be turned back."""
    aliases = of_type(resources, "Lambda::Alias")
    assert {alias["Name"] for alias in aliases.values()} == {"live"}
    assert {alias["FunctionName"]["Ref"] for alias in aliases.values()} == set(of_type(resources, "Lambda::Function"))
    uris = {str(route["x-amazon-apigateway-integration"]["uri"]) for route in operations(resources).values()}
    assert all(any(f"${{{alias}}}" in uri for alias in aliases) for uri in uris)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: t["Globals"]["Function"].update(CodeUri="s3://bucket/other"), id="code"),
        pytest.param(
            lambda t: t["Resources"]["SharedLayer"]["Properties"].update(ContentUri="s3://bucket/other"), id="layer"
        ),
        pytest.param(
            lambda t: t["Globals"]["Function"]["Environment"]["Variables"].update(MODEL="other"), id="environment"
        ),
    ],
)
def test_a_change_publishes_both_functions(change: Any, resources: Resource) -> None:
    """What is deployed but not published, nobody is served by: `live` would stay behind without a word."""
    changed = template()
    change(changed)
    assert published(translate(changed)["Resources"]).isdisjoint(published(resources))


def test_every_setting_can_be_set_and_nothing_else_is(function: Resource) -> None:
    """`sam local --env-vars` reaches declared variables only; a misspelt one would be read by nobody."""
    declared = {name for name in function["Environment"]["Variables"] if not name.startswith("POWERTOOLS_")}
    assert declared == {name.upper() for name in Settings.model_fields} | {"APP_SECRET_ARN"}


@pytest.mark.parametrize(
    "name", ["TURN_BURST", "TURNS_PER_MINUTE", "MCP_BURST", "MCP_REQUESTS_PER_MINUTE", "DAILY_MODEL_TOKENS"]
)
def test_limits_are_parameters(function: Resource, name: str) -> None:
    """Each reaches both functions, may be left to the program or switched off, and takes no number that it does not."""
    [parameter] = function["Environment"]["Variables"][name].values()
    pattern = template()["Parameters"][parameter]["AllowedPattern"]
    most = next(limit.lt for limit in Settings.model_fields[name.lower()].metadata if isinstance(limit, Lt)) - 1
    assert parameter.lower() == name.lower().replace("_", "")
    assert all(re.fullmatch(pattern, value) for value in ("", "0", str(most)))
    assert not any(re.fullmatch(pattern, value) for value in ("-1", "1.5", str(most + 1)))


def test_the_effort_is_a_parameter(function: Resource) -> None:
    """It takes exactly the values that the program takes, nothing among them, and begins with the program's own."""
    assert function["Environment"]["Variables"]["REASONING_EFFORT"] == {"Ref": "ReasoningEffort"}
    parameter, setting = template()["Parameters"]["ReasoningEffort"], Settings.model_fields["reasoning_effort"]
    assert sorted(parameter["AllowedValues"]) == sorted(get_args(setting.annotation))
    assert parameter["Default"] == setting.default


def test_secrets_are_not_in_the_template(function: Resource) -> None:
    """They come from the one secret; a parameter would show in the console."""
    variables = function["Environment"]["Variables"]
    assert (variables["DATABASE_URL"], variables["OPENAI_API_KEY"]) == ("", "")


def statements(resources: Resource) -> Iterator[tuple[str, Resource]]:
    """Every permission with the name of the role or policy that gives it."""
    for name, role in of_type(resources, "IAM::Role").items():
        for policy in role["Policies"]:
            yield from ((name, statement) for statement in policy["PolicyDocument"]["Statement"])
    for name, policy in of_type(resources, "IAM::ManagedPolicy").items():
        yield from ((name, statement) for statement in policy["PolicyDocument"]["Statement"])


def test_permissions_are_the_own_log_and_the_one_secret(resources: Resource) -> None:
    """All that a stolen function could do with AWS."""
    given = [(name, statement["Action"], statement["Resource"]) for name, statement in statements(resources)]
    write = ["logs:CreateLogStream", "logs:PutLogEvents"]
    assert sorted(given, key=str) == [
        ("ChatRole", write, {"Fn::GetAtt": ["ChatLogs", "Arn"]}),
        ("McpToolsRole", write, {"Fn::GetAtt": ["McpToolsLogs", "Arn"]}),
        ("ReadSecret", "secretsmanager:GetSecretValue", {"Ref": "AppSecretArn"}),
    ]


def test_roles_have_no_other_policies(resources: Resource) -> None:
    """SAM adds a managed policy that may write to every log group, unless a role is given."""
    roles = of_type(resources, "IAM::Role")
    assert set(roles) == {"ChatRole", "McpToolsRole"}
    secret_or_nothing = {"Fn::If": ["HasSecret", [{"Ref": "ReadSecret"}], {"Ref": "AWS::NoValue"}]}
    assert all(role["ManagedPolicyArns"] == secret_or_nothing for role in roles.values())


def test_each_function_acts_in_its_own_role(resources: Resource) -> None:
    """Which nobody but Lambda may take on: no other account, service or person."""
    roles = {name: function["Role"] for name, function in of_type(resources, "Lambda::Function").items()}
    assert roles == {
        "ChatFunction": {"Fn::GetAtt": ["ChatRole", "Arn"]},
        "McpToolsFunction": {"Fn::GetAtt": ["McpToolsRole", "Arn"]},
    }
    lambda_alone = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    trusted = [role["AssumeRolePolicyDocument"]["Statement"] for role in of_type(resources, "IAM::Role").values()]
    assert trusted == [[lambda_alone], [lambda_alone]]


def test_no_permission_is_given_by_a_wildcard(resources: Resource) -> None:
    """Nor by what is not named, or to whoever is not named."""
    for name, statement in statements(resources):
        assert set(statement) == {"Effect", "Action", "Resource"}, name
        assert statement["Effect"] == "Allow", name
        assert "*" not in str((statement["Action"], statement["Resource"])), name


def test_nothing_else_can_give_permissions(resources: Resource) -> None:
    """A resource of another kind is looked at here before it is deployed: it might be a user, a key or a bucket."""
    assert {each["Type"].removeprefix("AWS::") for each in resources.values()} == {
        "ApiGatewayV2::Api",
        "ApiGatewayV2::Stage",
        "IAM::ManagedPolicy",
        "IAM::Role",
        "Lambda::Alias",
        "Lambda::Function",
        "Lambda::LayerVersion",
        "Lambda::Permission",
        "Lambda::Version",
        "Logs::LogGroup",
        "Logs::QueryDefinition",
    }


def test_only_this_api_may_invoke_and_only_what_is_live(resources: Resource) -> None:
    """By the address of its own routes: no other gateway may call a function, and this one no old version of it."""
    source = "arn:${AWS::Partition}:execute-api:${AWS::Region}:${AWS::AccountId}:${__ApiId__}/${__Stage__}"
    permitted = set()
    for permission in of_type(resources, "Lambda::Permission").values():
        assert (permission["Action"], permission["Principal"]) == ("lambda:InvokeFunction", "apigateway.amazonaws.com")
        address, names = permission["SourceArn"]["Fn::Sub"]
        assert names == {"__ApiId__": {"Ref": "HttpApi"}, "__Stage__": "*"}
        assert address.startswith(f"{source}/")
        permitted.add((permission["FunctionName"]["Ref"], address.removeprefix(source)))
    assert permitted == {
        ("ChatFunctionAliaslive", "/POST/api/*/chat"),
        ("ChatFunctionAliaslive", "/GET/health"),
        ("ChatFunctionAliaslive", "/*"),
        ("McpToolsFunctionAliaslive", "/*/mcp"),
        ("McpToolsFunctionAliaslive", "/GET/.well-known/oauth-protected-resource"),
        ("McpToolsFunctionAliaslive", "/GET/.well-known/oauth-protected-resource/*"),
    }


@pytest.mark.parametrize("secret", ["", PREFIX + "taskchat/prod-AbCdEf"])
def test_the_secret_is_one_and_named_in_full(secret: str) -> None:
    """Its parameter takes no wildcard for its account or service, and may be left out."""
    pattern = template()["Parameters"]["AppSecretArn"]["AllowedPattern"]
    assert re.fullmatch(pattern, secret)


@pytest.mark.parametrize("secret", ["*", "arn:aws:secretsmanager:*:*:secret:*", "arn:aws:s3:::bucket", PREFIX + "*"])
def test_the_secret_is_not_many(secret: str) -> None:
    """A wildcard would let a stolen function read every secret there is."""
    pattern = template()["Parameters"]["AppSecretArn"]["AllowedPattern"]
    assert not re.fullmatch(pattern, secret)


def test_each_function_logs_json_to_a_group_of_its_own(resources: Resource) -> None:
    """The query over the audit lines needs fields, and knows where to look."""
    logging = [function["LoggingConfig"] for function in of_type(resources, "Lambda::Function").values()]
    assert {config["LogFormat"] for config in logging} == {"JSON"}
    assert {config["LogGroup"]["Ref"] for config in logging} == set(of_type(resources, "Logs::LogGroup"))


def test_logs_are_kept_for_a_time_and_outlive_the_stack(resources: Resource) -> None:
    """Without a retention they are kept and paid for ever; the audit trail is not for a deletion to take along."""
    groups = [each for each in resources.values() if each["Type"] == "AWS::Logs::LogGroup"]
    assert all(group["Properties"]["RetentionInDays"] == {"Ref": "LogRetentionDays"} for group in groups)
    assert {group["DeletionPolicy"] for group in groups} == {"RetainExceptOnCreate"}


def test_no_log_level_hides_the_audit_lines() -> None:
    """They are INFO, and Lambda drops what is below the level it is told."""
    assert template()["Parameters"]["LogLevel"]["AllowedValues"] == ["DEBUG", "INFO"]


def test_the_saved_query_finds_the_audit_lines_of_both_doors(resources: Resource) -> None:
    """Schema and fields are those of the audit line."""
    query = of_type(resources, "Logs::QueryDefinition")["ToolCallsQuery"]
    assert {group["Ref"] for group in query["LogGroupNames"]} == set(of_type(resources, "Logs::LogGroup"))
    assert SCHEMA.split("/")[0] in query["QueryString"].replace("\\", "")
    for field in ("actor", "turn_id", "conversation_id", "door", "tool", "outcome", "duration_ms", "call_id"):
        assert field in query["QueryString"]


def test_the_saved_query_adds_up_the_usage_lines(resources: Resource) -> None:
    """Schema and fields are those of the line that ends each attempt at a turn."""
    query = of_type(resources, "Logs::QueryDefinition")["UsageQuery"]
    assert query["LogGroupNames"] == [{"Ref": "ChatLogs"}]
    assert USAGE_SCHEMA.split("/")[0] in query["QueryString"].replace("\\", "")
    assert all(re.search(rf"\b{field.name}\b", query["QueryString"]) for field in fields(Usage))
    assert "actor" in query["QueryString"]


def operations(resources: Resource) -> dict[tuple[str, str], Resource]:
    """The API's operations by path and method."""
    [api] = of_type(resources, "ApiGatewayV2::Api").values()
    return {
        (path, method): operation
        for path, methods in api["Body"]["paths"].items()
        for method, operation in methods.items()
    }


def test_routes_are_the_chat_the_tools_and_a_place_for_the_rest(resources: Resource) -> None:
    """An unknown path reaches the chat function too, which answers it with the same problem+json as any error."""
    routes = {
        route: "McpTools" if "McpTools" in str(operation["x-amazon-apigateway-integration"]["uri"]) else "Chat"
        for route, operation in operations(resources).items()
    }
    assert routes == {
        ("/api/{user_id}/chat", "post"): "Chat",
        ("/health", "get"): "Chat",
        ("/$default", "x-amazon-apigateway-any-method"): "Chat",
        ("/mcp", "x-amazon-apigateway-any-method"): "McpTools",
        ("/.well-known/oauth-protected-resource", "get"): "McpTools",
        ("/.well-known/oauth-protected-resource/{proxy+}", "get"): "McpTools",
    }


def cors(resources: Resource) -> Resource:
    """What the API tells browsers when origins are given, and that it tells them nothing when none are."""
    [api] = of_type(resources, "ApiGatewayV2::Api").values()
    condition, given, otherwise = api["Body"]["x-amazon-apigateway-cors"]["Fn::If"]
    assert (condition, otherwise) == ("HasCorsOrigins", {"Ref": "AWS::NoValue"})
    found: Resource = given
    return found


def test_cors_lists_the_origins_one_by_one() -> None:
    """A list, whatever the parameter is given."""
    origins = "https://a.example.com,https://b.example.com:8443"
    translated = translate(template(), {"CorsOrigins": origins})
    assert cors(translated["Resources"])["allowOrigins"] == {"Fn::Split": [",", origins]}


@pytest.mark.parametrize("origins", ["*", "https://*.example.com", "https://a.example.com,*", "null"])
def test_cors_takes_exact_origins_only(origins: str) -> None:
    """A page of anybody's is not to call the API with a token it came by."""
    assert not re.fullmatch(template()["Parameters"]["CorsOrigins"]["AllowedPattern"], origins)


def test_cors_names_methods_and_headers(resources: Resource) -> None:
    """Nothing is allowed by a wildcard."""
    allowed = cors(resources)
    assert "*" not in [*allowed["allowMethods"], *allowed["allowHeaders"], *allowed["exposeHeaders"]]


def test_a_page_may_send_and_read_every_header_of_the_contract(resources: Resource) -> None:
    """A browser hides what is not listed."""
    allowed = cors(resources)
    assert {"authorization", "content-type", "idempotency-key"} <= set(allowed["allowHeaders"])
    assert {"idempotent-replayed", "retry-after", "www-authenticate"} <= set(allowed["exposeHeaders"])


def test_the_gateway_throttles(resources: Resource) -> None:
    """A flood is refused before it costs an invocation."""
    [stage] = of_type(resources, "ApiGatewayV2::Stage").values()
    assert set(stage["DefaultRouteSettings"]) == {"ThrottlingRateLimit", "ThrottlingBurstLimit"}


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_samconfig_gives_parameters_that_exist_and_all_that_have_no_default(environment: str) -> None:
    """`make deploy` asks nothing, and `sam` would ignore a misspelt name."""
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())[environment]["deploy"]["parameters"]
    given = {override.partition("=")[0] for override in config["parameter_overrides"]}
    known = template()["Parameters"]
    needed = {name for name, parameter in known.items() if "Default" not in parameter}
    assert needed <= given <= set(known)


def test_events_call_routes_that_exist(resources: Resource) -> None:
    """What `make smoke` shows the functions is what the gateway would."""
    routes = {(path, method.upper()) for path, method in operations(resources)}
    for event in (ROOT / "events").glob("*.json"):
        method, path = yaml_parse(event.read_text())["routeKey"].split(" ")
        assert (path, "X-AMAZON-APIGATEWAY-ANY-METHOD" if method == "ANY" else method) in routes
