"""template.yaml keeps its promises in the output of SAM's own translator, which CloudFormation gets."""

import json
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from annotated_types import Ge, Le, Lt
from samtranslator.yaml_helper import yaml_parse

from chat.turn import SCHEMA as USAGE_SCHEMA
from chat.usage import Usage
from dev.template_rules.transformed import Resource, template, translate
from taskchat.personal_data.retention import BATCH_SECONDS
from taskchat.settings import RetentionSettings, Settings
from taskchat.toolcalls.audit_log import SCHEMA

ROOT = Path(__file__).parent.parent
GATEWAY_SECONDS = 30
PREFIX = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:"


@pytest.fixture(scope="module")
def resources() -> Resource:
    """Return all resources by name."""
    found: Resource = translate(template())["Resources"]
    return found


def of_type(resources: Resource, kind: str) -> dict[str, Resource]:
    """Return the properties of the resources of one type."""
    return {name: each["Properties"] for name, each in resources.items() if each["Type"] == f"AWS::{kind}"}


def published(resources: Resource) -> set[str]:
    """Return the versions of the functions that a deployment would publish. Their names change with their content."""
    return set(of_type(resources, "Lambda::Version"))


@pytest.fixture(params=["ChatFunction", "McpToolsFunction"])
def function(request: pytest.FixtureRequest, resources: Resource) -> Resource:
    """Return each of the two functions that serve an API."""
    return of_type(resources, "Lambda::Function")[request.param]


@pytest.fixture
def retention(resources: Resource) -> Resource:
    """Return the function that deletes old rows."""
    return of_type(resources, "Lambda::Function")["RetentionFunction"]


def test_the_functions_have_their_packages_handlers(resources: Resource) -> None:
    """The import names on Lambda are those of the tests, with no path hacks."""
    handlers = {name: each["Handler"] for name, each in of_type(resources, "Lambda::Function").items()}
    assert handlers == {
        "ChatFunction": "chat.app.handler",
        "StreamFunction": "run.sh",
        "McpToolsFunction": "mcp_tools.app.handler",
        "RetentionFunction": "retention.app.handler",
    }


def test_runtime_and_architecture_are_the_layers(function: Resource, resources: Resource) -> None:
    """Compiled wheels and bytecode fit one Python on one architecture."""
    [layer] = of_type(resources, "Lambda::LayerVersion").values()
    assert [function["Runtime"]] == layer["CompatibleRuntimes"] == ["python3.13"]
    assert function["Architectures"] == layer["CompatibleArchitectures"] == [{"Ref": "Architecture"}]


def test_functions_share_the_layer(function: Resource, resources: Resource) -> None:
    """The taskchat package exists once."""
    [layer] = of_type(resources, "Lambda::LayerVersion")
    assert function["Layers"] == [{"Ref": layer}]


def test_a_function_ends_before_the_gateways_timeout(function: Resource) -> None:
    """No client would get a later answer."""
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
def test_a_change_publishes_every_function(change: Any, resources: Resource) -> None:
    """A version that is deployed but not published serves no request: `live` would silently stay behind."""
    changed = template()
    change(changed)
    assert published(translate(changed)["Resources"]).isdisjoint(published(resources))


def test_the_variables_are_exactly_the_settings(function: Resource) -> None:
    """`sam local --env-vars` reaches declared variables only, and the program reads no misspelt one."""
    declared = {name for name in function["Environment"]["Variables"] if not name.startswith("POWERTOOLS_")}
    assert declared == {name.upper() for name in Settings.model_fields} | {"APP_SECRET_ARN"}


@pytest.mark.parametrize(
    "name",
    [
        *("TURN_BURST", "TURNS_PER_MINUTE", "MCP_BURST", "MCP_REQUESTS_PER_MINUTE"),
        *("DATA_BURST", "DATA_REQUESTS_PER_MINUTE", "DAILY_MODEL_TOKENS"),
    ],
)
def test_limits_are_parameters(function: Resource, name: str) -> None:
    """Each parameter reaches both functions, takes 0 and nothing, and takes no number that the program refuses."""
    [parameter] = function["Environment"]["Variables"][name].values()
    pattern = template()["Parameters"][parameter]["AllowedPattern"]
    most = next(limit.lt for limit in Settings.model_fields[name.lower()].metadata if isinstance(limit, Lt)) - 1
    assert parameter.lower() == name.lower().replace("_", "")
    assert all(re.fullmatch(pattern, value) for value in ("", "0", str(most)))
    assert not any(re.fullmatch(pattern, value) for value in ("-1", "1.5", str(most + 1)))


def test_the_reasoning_effort_is_a_parameter(function: Resource) -> None:
    """It takes exactly the program's values, the empty one among them, and has the program's default."""
    assert function["Environment"]["Variables"]["REASONING_EFFORT"] == {"Ref": "ReasoningEffort"}
    parameter, setting = template()["Parameters"]["ReasoningEffort"], Settings.model_fields["reasoning_effort"]
    assert sorted(parameter["AllowedValues"]) == sorted(get_args(setting.annotation))
    assert parameter["Default"] == setting.default


def test_secrets_are_not_in_the_template(function: Resource) -> None:
    """Secrets come from the one secret. The console would show a parameter."""
    variables = function["Environment"]["Variables"]
    assert (variables["DATABASE_URL"], variables["OPENAI_API_KEY"]) == ("", "")


def statements(resources: Resource) -> Iterator[tuple[str, Resource]]:
    """Yield every permission with the name of its role or policy."""
    for name, role in of_type(resources, "IAM::Role").items():
        for policy in role.get("Policies", []):
            yield from ((name, statement) for statement in policy["PolicyDocument"]["Statement"])
    for name, policy in of_type(resources, "IAM::ManagedPolicy").items():
        yield from ((name, statement) for statement in policy["PolicyDocument"]["Statement"])


def test_permissions_are_for_the_functions_log_and_the_secret(resources: Resource) -> None:
    """A stolen function could do nothing else with AWS."""
    given = [(name, statement["Action"], statement["Resource"]) for name, statement in statements(resources)]
    write = ["logs:CreateLogStream", "logs:PutLogEvents"]
    assert sorted(given, key=str) == [
        ("ChatRole", write, {"Fn::GetAtt": ["ChatLogs", "Arn"]}),
        ("McpToolsRole", write, {"Fn::GetAtt": ["McpToolsLogs", "Arn"]}),
        ("ReadSecret", "secretsmanager:GetSecretValue", {"Ref": "AppSecretArn"}),
        ("RetentionRole", "secretsmanager:GetSecretValue", {"Ref": "RetentionSecretArn"}),
        ("RetentionRole", write, {"Fn::GetAtt": ["RetentionLogs", "Arn"]}),
        ("UseKmsKey", "kms:Decrypt", {"Ref": "KmsKeyArn"}),
        ("WriteTraces", ["xray:PutTraceSegments", "xray:PutTelemetryRecords"], "*"),
    ]


def test_roles_have_no_other_policies(resources: Resource) -> None:
    """Without a role, SAM adds a managed policy that may write to every log group."""
    roles = of_type(resources, "IAM::Role")
    assert set(roles) == {"ChatRole", "McpToolsRole", "RetentionRole", "RollOutRole"}
    secret, key, traces = (
        {"Fn::If": [condition, {"Ref": policy}, {"Ref": "AWS::NoValue"}]}
        for condition, policy in (("HasSecret", "ReadSecret"), ("HasKmsKey", "UseKmsKey"), ("IsTracing", "WriteTraces"))
    )
    attached = {name: role["ManagedPolicyArns"] for name, role in roles.items()}
    assert str(attached.pop("RollOutRole")).endswith(":policy/service-role/AWSCodeDeployRoleForLambdaLimited'}]")
    assert attached.pop("RetentionRole") == [key, traces]
    assert all(policies == [secret, key, traces] for policies in attached.values())


def test_each_function_has_its_own_role(resources: Resource) -> None:
    """Only Lambda may assume it, and CodeDeploy its own: no other account, service or user."""
    roles = {name: function["Role"] for name, function in of_type(resources, "Lambda::Function").items()}
    assert roles == {
        "ChatFunction": {"Fn::GetAtt": ["ChatRole", "Arn"]},
        "StreamFunction": {"Fn::GetAtt": ["ChatRole", "Arn"]},  # the same package
        "McpToolsFunction": {"Fn::GetAtt": ["McpToolsRole", "Arn"]},
        "RetentionFunction": {"Fn::GetAtt": ["RetentionRole", "Arn"]},
    }
    for name, role in of_type(resources, "IAM::Role").items():
        service = "codedeploy.amazonaws.com" if name == "RollOutRole" else "lambda.amazonaws.com"
        [trusted] = role["AssumeRolePolicyDocument"]["Statement"]
        assert trusted == {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}


def test_no_permission_is_given_by_a_wildcard(resources: Resource) -> None:
    """No permission has NotAction, NotResource or a principal either."""
    for name, statement in statements(resources):
        assert set(statement) - {"Condition"} == {"Effect", "Action", "Resource"}, name
        assert statement["Effect"] == "Allow", name
        assert "*" not in str(statement["Action"]), name
        assert "*" not in str(statement["Resource"]) or name == "WriteTraces", name  # X-Ray has no resources to name


def test_no_other_resource_type_is_deployed(resources: Resource) -> None:
    """An engineer must look at a new type here first: it might be a user, a key or a bucket."""
    assert {each["Type"].removeprefix("AWS::") for each in resources.values()} == {
        "ApiGateway::Deployment",
        "ApiGateway::RestApi",
        "ApiGateway::Stage",
        "ApiGatewayV2::Api",
        "ApiGatewayV2::ApiMapping",
        "ApiGatewayV2::DomainName",
        "ApiGatewayV2::Stage",
        "Budgets::Budget",
        "CloudFront::Distribution",
        "CloudFront::OriginAccessControl",
        "CloudFront::ResponseHeadersPolicy",
        "CloudWatch::Alarm",
        "CloudWatch::Dashboard",
        "CodeDeploy::Application",
        "CodeDeploy::DeploymentGroup",
        "Events::Rule",
        "IAM::ManagedPolicy",
        "IAM::Role",
        "KMS::Key",
        "Lambda::Alias",
        "Lambda::EventInvokeConfig",
        "Lambda::Function",
        "Lambda::LayerVersion",
        "Lambda::Permission",
        "Lambda::Version",
        "Logs::LogGroup",
        "Logs::QueryDefinition",
        "Route53::RecordSet",
        "S3::Bucket",
        "S3::BucketPolicy",
        "SNS::Topic",
        "SNS::TopicPolicy",
    }


def test_only_this_api_may_invoke_and_only_live_versions(resources: Resource) -> None:
    """The permission names the API's own routes: no other gateway may call a function, and this one no old version."""
    source = "arn:${AWS::Partition}:execute-api:${AWS::Region}:${AWS::AccountId}:${__ApiId__}/${__Stage__}"
    permitted = set()
    for name, permission in of_type(resources, "Lambda::Permission").items():
        if permission["Principal"] == "events.amazonaws.com" or name == "StreamPermission":
            continue  # tested below
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


HAS_DAYS = {"Fn::Not": [{"Fn::Equals": [{"Ref": "RetentionDays"}, 0]}]}


class TestRetention:
    """The function that deletes old rows exists only with a retention time, and can do nothing else."""

    def test_it_exists_only_with_a_retention_time(self, resources: Resource) -> None:
        """So do its role, log group, schedule and permission. By default there is none."""
        own = {name: each.get("Condition") for name, each in resources.items() if name.startswith("Retention")}
        assert len(own) >= 8
        assert set(own.values()) == {"HasRetention"}
        document = template()
        assert document["Parameters"]["RetentionDays"]["Default"] == 0
        assert HAS_DAYS in document["Conditions"]["HasRetention"]["Fn::And"]
        assert document["Outputs"]["RetentionLogGroup"]["Condition"] == "HasRetention"

    def test_a_retention_time_needs_a_secret_of_its_own(self) -> None:
        """CloudFormation refuses the deployment otherwise, and not the first run."""
        rule = template()["Rules"]["RetentionNeedsSecret"]
        assert rule["RuleCondition"] == HAS_DAYS
        secret = {"Ref": "RetentionSecretArn"}
        assert [assertion["Assert"] for assertion in rule["Assertions"]] == [
            {"Fn::Not": [{"Fn::Equals": [secret, refused]}]} for refused in ("", {"Ref": "AppSecretArn"})
        ]

    def test_its_days_are_the_programs(self, retention: Resource) -> None:
        """The parameter takes exactly the numbers that the program takes."""
        parameter = template()["Parameters"]["RetentionDays"]
        limits = RetentionSettings.model_fields["retention_days"].metadata
        assert limits == [Ge(parameter["MinValue"]), Le(parameter["MaxValue"])]
        variables = retention["Environment"]["Variables"]
        assert variables["RETENTION_DAYS"] == {"Ref": "RetentionDays"}
        assert {name.upper() for name in RetentionSettings.model_fields} <= set(variables)

    def test_it_reads_no_secret_of_the_others(self, retention: Resource) -> None:
        """Its own secret has the one URL that it needs."""
        variables = retention["Environment"]["Variables"]
        assert variables["APP_SECRET_ARN"] == {"Ref": "RetentionSecretArn"}
        assert (variables["RETENTION_DATABASE_URL"], variables["DATABASE_URL"]) == ("", "")

    def test_it_runs_daily_and_fails_quietly(self, retention: Resource, resources: Resource) -> None:
        """Each batch is done once it is committed: a failed run needs no more than the next one."""
        [rule] = of_type(resources, "Events::Rule").values()
        [target] = rule["Targets"]
        assert rule["ScheduleExpression"] == "rate(1 day)"
        assert target["Arn"] == {"Ref": "RetentionFunctionAliaslive"}
        assert target["RetryPolicy"]["MaximumRetryAttempts"] <= 2
        [invocation] = of_type(resources, "Lambda::EventInvokeConfig").values()
        assert invocation["MaximumRetryAttempts"] <= 1
        assert BATCH_SECONDS * 5 <= retention["Timeout"] <= 900

    def test_only_its_schedule_may_invoke_it(self, resources: Resource) -> None:
        """It has no route, and no other rule may call it."""
        permissions = of_type(resources, "Lambda::Permission").values()
        [permission] = [each for each in permissions if "Retention" in str(each["FunctionName"])]
        [rule] = of_type(resources, "Events::Rule")
        assert permission["Principal"] == "events.amazonaws.com"
        assert permission["SourceArn"] == {"Fn::GetAtt": [rule, "Arn"]}

    def test_it_starts_without_a_snapshot(self, retention: Resource) -> None:
        """A snapshot costs money as long as the version exists."""
        assert retention["SnapStart"] == {"ApplyOn": "None"}


class TestStreaming:
    """The function that streams exists only if it is wanted, and is the chat function under an HTTP server."""

    @pytest.fixture
    def stream(self, resources: Resource) -> Resource:
        """Return the function that streams."""
        return of_type(resources, "Lambda::Function")["StreamFunction"]

    @pytest.fixture
    def api(self, resources: Resource) -> Resource:
        """Return the description of the REST API."""
        [api] = of_type(resources, "ApiGateway::RestApi").values()
        found: Resource = api["Body"]
        return found

    def test_it_exists_only_if_it_is_enabled(self, resources: Resource) -> None:
        """So do its API with stage and deployment, version, alias, roll-out, permission and output."""
        document = template()
        own = {name: each.get("Condition") for name, each in resources.items() if name.startswith("Stream")}
        assert len(own) == 8
        assert set(own.values()) == {"IsStreaming"}
        assert document["Conditions"]["IsStreaming"] == {"Fn::Equals": [{"Ref": "Streaming"}, "enabled"]}
        assert document["Parameters"]["Streaming"]["Default"] == "disabled"
        assert document["Outputs"]["StreamUrl"]["Condition"] == "IsStreaming"

    @pytest.mark.parametrize("same", ["Runtime", "Architectures", "Code", "MemorySize", "LoggingConfig"])
    def test_it_is_the_chat_function(self, stream: Resource, resources: Resource, same: str) -> None:
        """The two differ in their entry points only."""
        assert stream[same] == of_type(resources, "Lambda::Function")["ChatFunction"][same]

    def test_the_adapter_starts_its_handler(self, stream: Resource, resources: Resource) -> None:
        """The adapter is a layer. It has the chat function's other variables and layers."""
        chat = of_type(resources, "Lambda::Function")["ChatFunction"]
        *layers, adapter = stream["Layers"]
        assert layers == chat["Layers"]
        condition, *adapters = adapter["Fn::If"]
        assert condition == "IsArm"
        for processor, layer in zip(("Arm64", "X86"), adapters, strict=True):
            name = f":lambda:${{AWS::Region}}:753240598075:layer:LambdaAdapterLayer{processor}:30"
            assert layer["Fn::Sub"].endswith(name)
        assert stream["Environment"]["Variables"] == chat["Environment"]["Variables"] | {
            "PYTHONPATH": "/opt/python",
            "AWS_LAMBDA_EXEC_WRAPPER": "/opt/bootstrap",
            "AWS_LWA_INVOKE_MODE": "response_stream",
            "AWS_LWA_READINESS_CHECK_PATH": "/health",
        }
        assert os.access(ROOT / "functions" / stream["Handler"], os.X_OK)

    def test_its_seconds_are_the_programs(self, stream: Resource, api: Resource) -> None:
        """The parameter takes exactly the numbers that the program takes, and API Gateway waits for longer."""
        parameter, setting = template()["Parameters"]["StreamSeconds"], Settings.model_fields["stream_seconds"]
        assert setting.metadata == [Ge(parameter["MinValue"]), Le(parameter["MaxValue"])]
        assert setting.default == parameter["Default"]
        assert stream["Timeout"] == stream["Environment"]["Variables"]["STREAM_SECONDS"] == {"Ref": "StreamSeconds"}
        assert all(each["timeoutInMillis"] > parameter["MaxValue"] * 1000 for each in self.integrations(api).values())

    def test_it_starts_without_a_snapshot(self, stream: Resource) -> None:
        """The runtime's own client takes snapshots, and the adapter runs in its place."""
        assert stream["SnapStart"] == {"ApplyOn": "None"}

    def integrations(self, api: Resource) -> dict[str, Resource]:
        """Return the integration of each path, which has one for all methods."""
        return {
            path: operation["x-amazon-apigateway-integration"]
            for path, operations in api["paths"].items()
            for method, operation in operations.items()
            if method == "x-amazon-apigateway-any-method"
        }

    def test_every_path_streams_from_the_published_version(self, api: Resource) -> None:
        """The app answers an unknown route, and a preflight request, with the same texts as on the HTTP API."""
        found = self.integrations(api)
        assert set(found) == {"/", "/{proxy+}"} == set(api["paths"])
        for integration in found.values():
            assert (integration["type"], integration["httpMethod"]) == ("aws_proxy", "POST")
            assert integration["responseTransferMode"] == "STREAM"
            address, names = integration["uri"]["Fn::Sub"]
            assert address.endswith("/2021-11-15/functions/${Alias}/response-streaming-invocations")
            assert names == {"Alias": {"Ref": "StreamFunctionAliaslive"}}

    def test_its_api_is_regional_and_throttles(self, resources: Resource) -> None:
        """Only a regional API streams. Its limits are those of the HTTP API."""
        [api] = of_type(resources, "ApiGateway::RestApi").values()
        [stage] = of_type(resources, "ApiGateway::Stage").values()
        [settings] = stage["MethodSettings"]
        assert api["EndpointConfiguration"] == {"Types": ["REGIONAL"]}
        assert (settings["ResourcePath"], settings["HttpMethod"]) == ("/*", "*")
        assert settings["ThrottlingRateLimit"] == {"Ref": "ThrottlingRate"}
        assert settings["ThrottlingBurstLimit"] == {"Ref": "ThrottlingBurst"}

    def test_only_its_api_may_invoke_it(self, resources: Resource) -> None:
        """The permission is for the published version."""
        permission = of_type(resources, "Lambda::Permission")["StreamPermission"]
        assert permission["FunctionName"] == {"Ref": "StreamFunctionAliaslive"}
        assert (permission["Action"], permission["Principal"]) == ("lambda:InvokeFunction", "apigateway.amazonaws.com")
        assert permission["SourceArn"]["Fn::Sub"].endswith(":${AWS::AccountId}:${StreamApi}/live/*")

    def test_a_page_may_read_the_gateways_own_errors(self, api: Resource) -> None:
        """Such as its 429. The app cannot add CORS headers to them."""
        condition, responses, nothing = api["x-amazon-apigateway-gateway-responses"]["Fn::If"]
        assert (condition, set(responses), nothing) == (
            "HasCorsOrigins",
            {"DEFAULT_4XX", "DEFAULT_5XX"},
            {"Ref": "AWS::NoValue"},
        )
        allow = "gatewayresponse.header.Access-Control-Allow-Origin"
        assert all(each["responseParameters"] == {allow: "'*'"} for each in responses.values())

    def test_a_change_of_its_api_is_deployed(self, resources: Resource) -> None:
        """A stage shows the API as it was at its last deployment, and SAM makes one for each change."""
        changed = template()
        changed["Resources"]["StreamApi"]["Properties"]["DefinitionBody"]["info"]["version"] = "2"
        deployments = [
            set(of_type(each, "ApiGateway::Deployment")) for each in (resources, translate(changed)["Resources"])
        ]
        assert deployments[0].isdisjoint(deployments[1])


@pytest.mark.parametrize("parameter", ["AppSecretArn", "RetentionSecretArn"])
@pytest.mark.parametrize("secret", ["", PREFIX + "taskchat/prod-AbCdEf"])
def test_the_secrets_arn_is_complete_or_empty(secret: str, parameter: str) -> None:
    """The parameter takes a full ARN, or nothing."""
    pattern = template()["Parameters"][parameter]["AllowedPattern"]
    assert re.fullmatch(pattern, secret)


@pytest.mark.parametrize("parameter", ["AppSecretArn", "RetentionSecretArn"])
@pytest.mark.parametrize("secret", ["*", "arn:aws:secretsmanager:*:*:secret:*", "arn:aws:s3:::bucket", PREFIX + "*"])
def test_the_secrets_arn_has_no_wildcard(secret: str, parameter: str) -> None:
    """With a wildcard a stolen function could read every secret."""
    pattern = template()["Parameters"][parameter]["AllowedPattern"]
    assert not re.fullmatch(pattern, secret)


def test_each_function_logs_json_to_its_own_group(resources: Resource) -> None:
    """The query over the audit lines needs fields, and the names of the groups."""
    logging = [function["LoggingConfig"] for function in of_type(resources, "Lambda::Function").values()]
    assert {config["LogFormat"] for config in logging} == {"JSON"}
    assert {config["LogGroup"]["Ref"] for config in logging} == {"ChatLogs", "McpToolsLogs", "RetentionLogs"}


def test_logs_have_a_retention_and_the_audit_trail_outlives_the_stack(resources: Resource) -> None:
    """Without a retention they cost money for ever. The gateway's log holds no audit line and goes with the stack."""
    groups = {name: each for name, each in resources.items() if each["Type"] == "AWS::Logs::LogGroup"}
    assert all(group["Properties"]["RetentionInDays"] == {"Ref": "LogRetentionDays"} for group in groups.values())
    assert {name: group.get("DeletionPolicy") for name, group in groups.items()} == {
        "ChatLogs": "RetainExceptOnCreate",
        "McpToolsLogs": "RetainExceptOnCreate",
        "RetentionLogs": "RetainExceptOnCreate",
        "GatewayLogs": None,
    }


def test_no_log_level_hides_the_audit_lines() -> None:
    """They have the level INFO, and Lambda drops lines below its log level."""
    assert template()["Parameters"]["LogLevel"]["AllowedValues"] == ["DEBUG", "INFO"]


def test_the_saved_query_finds_the_audit_lines_of_both_apis(resources: Resource) -> None:
    """Its schema and fields are those of the audit line."""
    query = of_type(resources, "Logs::QueryDefinition")["ToolCallsQuery"]
    assert {group["Ref"] for group in query["LogGroupNames"]} == {"ChatLogs", "McpToolsLogs"}
    assert SCHEMA.split("/")[0] in query["QueryString"].replace("\\", "")
    for field in ("actor", "turn_id", "conversation_id", "door", "tool", "outcome", "duration_ms", "call_id"):
        assert field in query["QueryString"]


def test_the_saved_query_adds_up_the_usage_lines(resources: Resource) -> None:
    """Its schema and fields are those of the line that ends each attempt at a turn."""
    query = of_type(resources, "Logs::QueryDefinition")["UsageQuery"]
    assert query["LogGroupNames"] == [{"Ref": "ChatLogs"}]
    assert USAGE_SCHEMA.split("/")[0] in query["QueryString"].replace("\\", "")
    assert all(re.search(rf"\b{field.name}\b", query["QueryString"]) for field in fields(Usage))
    assert "actor" in query["QueryString"]


def operations(resources: Resource) -> dict[tuple[str, str], Resource]:
    """Return the API's operations by path and method."""
    [api] = of_type(resources, "ApiGatewayV2::Api").values()
    return {
        (path, method): operation
        for path, methods in api["Body"]["paths"].items()
        for method, operation in methods.items()
    }


def test_the_routes_are_these(resources: Resource) -> None:
    """An unknown path reaches the chat function, which answers with problem+json as for any error."""
    routes = {
        route: "McpTools" if "McpTools" in str(operation["x-amazon-apigateway-integration"]["uri"]) else "Chat"
        for route, operation in operations(resources).items()
    }
    assert routes == {
        ("/api/{user_id}/chat", "post"): "Chat",
        ("/health", "get"): "Chat",
        ("$default", "x-amazon-apigateway-any-method"): "Chat",
        ("/mcp", "x-amazon-apigateway-any-method"): "McpTools",
        ("/.well-known/oauth-protected-resource", "get"): "McpTools",
        ("/.well-known/oauth-protected-resource/{proxy+}", "get"): "McpTools",
    }


def cors(resources: Resource) -> Resource:
    """Return the API's CORS settings for given origins. Check that it has none without origins."""
    [api] = of_type(resources, "ApiGatewayV2::Api").values()
    condition, given, otherwise = api["Body"]["x-amazon-apigateway-cors"]["Fn::If"]
    assert (condition, otherwise) == ("HasCorsOrigins", {"Ref": "AWS::NoValue"})
    found: Resource = given
    return found


def test_cors_lists_the_origins_one_by_one() -> None:
    """The parameter's text becomes a list."""
    origins = "https://a.example.com,https://b.example.com:8443"
    translated = translate(template(), {"CorsOrigins": origins})
    assert cors(translated["Resources"])["allowOrigins"] == {"Fn::Split": [",", origins]}


@pytest.mark.parametrize("origins", ["*", "https://*.example.com", "https://a.example.com,*", "null"])
def test_cors_takes_exact_origins_only(origins: str) -> None:
    """No other page may call the API with a stolen token."""
    assert not re.fullmatch(template()["Parameters"]["CorsOrigins"]["AllowedPattern"], origins)


def test_cors_names_methods_and_headers(resources: Resource) -> None:
    """No setting is a wildcard."""
    allowed = cors(resources)
    assert "*" not in [*allowed["allowMethods"], *allowed["allowHeaders"], *allowed["exposeHeaders"]]


def test_a_page_may_send_and_read_every_header_of_the_contract(resources: Resource) -> None:
    """A browser hides a header that is not listed."""
    allowed = cors(resources)
    assert {"authorization", "content-type", "idempotency-key", "confirm"} <= set(allowed["allowHeaders"])
    assert {"idempotent-replayed", "retry-after", "www-authenticate"} <= set(allowed["exposeHeaders"])


def test_a_page_may_send_every_method_of_the_contract(resources: Resource) -> None:
    """A browser asks the gateway first, and sends no other method."""
    described = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"].values()
    methods = {method.upper() for path in described for method in path}
    assert methods <= set(cors(resources)["allowMethods"]) == {"GET", "POST", "PATCH", "DELETE"}


def test_the_gateway_throttles(resources: Resource) -> None:
    """The gateway refuses a flood before it costs an invocation."""
    [stage] = of_type(resources, "ApiGatewayV2::Stage").values()
    assert set(stage["DefaultRouteSettings"]) == {"ThrottlingRateLimit", "ThrottlingBurstLimit"}


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_samconfig_has_all_required_parameters_and_no_unknown_one(environment: str) -> None:
    """`make deploy` asks no question, and `sam` would ignore a misspelt name."""
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())[environment]["deploy"]["parameters"]
    given = {override.partition("=")[0] for override in config["parameter_overrides"]}
    known = template()["Parameters"]
    needed = {name for name, parameter in known.items() if "Default" not in parameter}
    assert needed <= given <= set(known)


def test_events_call_routes_that_exist(resources: Resource) -> None:
    """`make smoke` sends the functions the gateway's events, and one of the schedule's."""
    routes = {(path, method.upper()) for path, method in operations(resources)}
    for event in set((ROOT / "events").glob("*.json")) - {ROOT / "events/retention.json"}:
        method, path = yaml_parse(event.read_text())["routeKey"].split(" ")
        assert (path, "X-AMAZON-APIGATEWAY-ANY-METHOD" if method == "ANY" else method) in routes
