"""The first deployment works as written, with a domain or without, and later ones roll out and back."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from dev.tokens import Issuer
from mcp_tools.app import NO_API
from testing.callers import AUTH, RESOURCE
from testing.gateway import Response, event, invoke
from tests.conftest import ROOT, reset_processes
from tests.test_mcp_endpoint import METADATA, TOOLS
from tests.test_template import Resource, of_type, template, translate

API = "a1b2c3d4e5"
OWN_HOST = f"{API}.execute-api.eu-west-1.amazonaws.com"
OWN_URL = f"https://{OWN_HOST}/mcp"
UNNAMED = "https://api-id.execute-api.eu-west-1.amazonaws.com/mcp"
"""MCP_RESOURCE_URL as the template sets it for a first deployment."""

LIST_TOOLS = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'


@pytest.fixture(scope="module")
def document() -> Resource:
    """Return the whole template as CloudFormation gets it."""
    return translate(template())


@pytest.fixture(scope="module")
def resources(document: Resource) -> Resource:
    """Return all resources by name."""
    found: Resource = document["Resources"]
    return found


def references(part: Any) -> Iterator[str]:
    """Yield the name of each resource that a part of the template refers to."""
    if isinstance(part, list):
        for each in part:
            yield from references(each)
    elif isinstance(part, dict):
        for key, value in part.items():
            match key, value:
                case "Ref", str():
                    yield value
                case "Fn::GetAtt", [str(name), *_]:
                    yield name
                case "Fn::Sub", str():
                    yield from re.findall(r"\$\{([A-Za-z0-9]+)", value)
                case "Fn::Sub", [str(text), dict(names)]:
                    yield from set(re.findall(r"\$\{([A-Za-z0-9]+)", text)) - set(names)
                    yield from references(names)
                case "DependsOn", _:
                    yield from [value] if isinstance(value, str) else value
                case _:
                    yield from references(value)


class TestTemplate:
    """CloudFormation can make the stack in one go."""

    def test_no_resource_waits_for_itself(self, resources: Resource) -> None:
        """CloudFormation counts an UpdatePolicy's references too. The linter does not."""
        waits = {name: set(references(each)) & set(resources) for name, each in resources.items()}
        while ready := {name for name, others in waits.items() if not others}:
            waits = {name: others - ready for name, others in waits.items() if name not in ready}
        assert not waits

    def test_a_first_deployment_names_no_url_of_its_own(self, resources: Resource) -> None:
        """The API's URL is not known before the functions are made, so the function gets all of it but the id."""
        variables = of_type(resources, "Lambda::Function")["McpToolsFunction"]["Environment"]["Variables"]
        given, (_, of_domain, of_api) = (
            variables["MCP_RESOURCE_URL"]["Fn::If"][1],
            (variables["MCP_RESOURCE_URL"]["Fn::If"][2]["Fn::If"]),
        )
        assert given == {"Ref": "McpResourceUrl"}
        assert of_domain == {"Fn::Sub": "https://${DomainName}/mcp"}
        assert (
            of_api["Fn::Sub"].replace("${AWS::Region}", "eu-west-1").replace("${AWS::URLSuffix}", "amazonaws.com")
            == UNNAMED
        )

    def test_the_output_is_the_audience(self, document: Resource) -> None:
        """Better Auth gets the value of McpUrl, which the function compares with each token's audience."""
        first, given, otherwise = document["Outputs"]["McpUrl"]["Value"]["Fn::If"]
        condition, of_domain, of_api = otherwise["Fn::If"]
        assert (first, given, condition) == ("HasMcpResourceUrl", {"Ref": "McpResourceUrl"}, "HasDomain")
        assert of_domain == {"Fn::Sub": "https://${DomainName}/mcp"}
        assert of_api == {"Fn::Sub": "${HttpApi.ApiEndpoint}/mcp"}

    def test_no_warning_ends_a_deployment(self, resources: Resource) -> None:
        """API Gateway warns of `$default` and of a disabled endpoint."""
        apis = [*of_type(resources, "ApiGatewayV2::Api").values(), *of_type(resources, "ApiGateway::RestApi").values()]
        assert len(apis) == 2
        assert not any(api.get("FailOnWarnings") for api in apis)

    def test_the_domain_exists_only_with_all_three_parameters(self, document: Resource, resources: Resource) -> None:
        """A rule refuses one or two of them before anything is made."""
        own = {name for name, each in resources.items() if each.get("Condition") == "HasDomain"}
        assert own == {"ApiDomain", "ApiDomainMapping", "ApiDomainRecord"}
        three = ["DomainName", "CertificateArn", "HostedZoneId"]
        are_empty = [{"Fn::Equals": [{"Ref": name}, ""]} for name in three]
        rule = document["Rules"]["DomainNeedsAllThree"]
        assert rule["RuleCondition"] == {"Fn::Not": [{"Fn::And": are_empty}]}
        assert rule["Assertions"][0]["Assert"] == {"Fn::And": [{"Fn::Not": [each]} for each in are_empty]}
        assert {document["Parameters"][name]["Default"] for name in three} == {""}

    def test_the_domain_leads_to_the_api(self, resources: Resource) -> None:
        """The mapping names the API and its stage, and the record names the domain's own address."""
        mapping = of_type(resources, "ApiGatewayV2::ApiMapping")["ApiDomainMapping"]
        assert mapping == {
            "ApiId": {"Ref": "HttpApi"},
            "DomainName": {"Ref": "ApiDomain"},
            "Stage": {"Ref": "HttpApiApiGatewayDefaultStage"},
        }
        record = of_type(resources, "Route53::RecordSet")["ApiDomainRecord"]
        assert record["AliasTarget"]["DNSName"] == {"Fn::GetAtt": ["ApiDomain", "RegionalDomainName"]}
        [configuration] = of_type(resources, "ApiGatewayV2::DomainName")["ApiDomain"]["DomainNameConfigurations"]
        assert configuration["SecurityPolicy"] == "TLS_1_2"

    def test_an_alarm_turns_a_new_version_back(self, resources: Resource) -> None:
        """Each function that serves an API moves its alias by CodeDeploy. The retention function has no traffic."""
        groups = of_type(resources, "CodeDeploy::DeploymentGroup")
        assert set(groups) == {f"{name}FunctionDeploymentGroup" for name in ("Chat", "Stream", "McpTools")}
        for group in groups.values():
            condition, rolls_back, does_not = group["AlarmConfiguration"]["Fn::If"]
            assert (condition, does_not) == ("RollsBackOnAlarms", {})
            assert rolls_back["Enabled"]
            assert [alarm["Name"]["Ref"] for alarm in rolls_back["Alarms"]] == ["ServerErrorsAlarm", "ChatErrorsAlarm"]
            assert "DEPLOYMENT_STOP_ON_ALARM" in group["AutoRollbackConfiguration"]["Events"]
        assert {"ServerErrorsAlarm", "ChatErrorsAlarm"} <= set(of_type(resources, "CloudWatch::Alarm"))

    @pytest.mark.parametrize("kind", template()["Parameters"]["CanaryType"]["AllowedValues"])
    def test_traffic_moves_as_the_parameter_says(self, kind: str) -> None:
        """SAM makes the name of CodeDeploy's configuration from it."""
        found = of_type(translate(template(), {"CanaryType": kind})["Resources"], "CodeDeploy::DeploymentGroup")
        assert {str(group["DeploymentConfigName"]["Fn::Sub"][1]["ConfigName"]) for group in found.values()} == {kind}

    def test_a_key_of_ones_own_encrypts_the_logs(self, document: Resource, resources: Resource) -> None:
        """The functions may decrypt the secret with it, and only through Secrets Manager."""
        key = {"Fn::If": ["HasKmsKey", {"Ref": "KmsKeyArn"}, {"Ref": "AWS::NoValue"}]}
        assert all(group["KmsKeyId"] == key for group in of_type(resources, "Logs::LogGroup").values())
        [statement] = of_type(resources, "IAM::ManagedPolicy")["UseKmsKey"]["PolicyDocument"]["Statement"]
        assert set(statement["Condition"]["StringEquals"]) == {"kms:ViaService"}
        assert resources["UseKmsKey"]["Condition"] == "HasKmsKey"
        assert document["Parameters"]["KmsKeyArn"]["Default"] == ""

    def test_traces_are_off_by_default(self, document: Resource, resources: Resource) -> None:
        """The roles may write traces only if the functions do."""
        assert document["Parameters"]["Tracing"]["Default"] == "PassThrough"
        assert resources["WriteTraces"]["Condition"] == "IsTracing"
        for function in of_type(resources, "Lambda::Function").values():
            assert function["TracingConfig"] == {"Mode": {"Ref": "Tracing"}}

    def test_deleting_the_stack_leaves_the_log_groups_only(self, resources: Resource) -> None:
        """They hold the audit trail. Published versions go with their functions."""
        kept = {each["Type"] for each in resources.values() if each.get("DeletionPolicy", "Delete") != "Delete"}
        assert kept == {"AWS::Logs::LogGroup", "AWS::Lambda::Version"}


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_samconfig_is_consistent(environment: str) -> None:
    """Each table has a region, the one of its secret, and marks each value that is the reader's own."""
    text = (ROOT / "samconfig.toml").read_text()
    table = tomllib.loads(text)[environment]["deploy"]["parameters"]
    given = dict(override.split("=", 1) for override in table["parameter_overrides"])
    assert f":{table['region']}:" in given["AppSecretArn"]
    assert given["AuthIssuer"] == given["AuthAudience"]
    assert given["AuthJwksUrl"] == f"{given['AuthIssuer']}/api/auth/jwks"
    for name, value in given.items():
        pattern = template()["Parameters"][name].get("AllowedPattern", ".*")
        assert re.fullmatch(pattern, value), name
        assert value in map(str, template()["Parameters"][name].get("AllowedValues", [value]))
    example = re.compile(r'^ *"?\w+ ?=.*(example\.com|123456789012|localhost|eu-west-1).*$', re.MULTILINE)
    assert all(line[0].endswith("# yours") for line in example.finditer(text))


class TestOwnUrl:
    """Without a domain, the MCP endpoint serves under the API's own URL, from the first deployment on."""

    @pytest.fixture(autouse=True)
    def first_deployment(self, environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Set MCP_RESOURCE_URL as the template does, in a new process."""
        reset_processes()
        monkeypatch.setenv("MCP_RESOURCE_URL", UNNAMED)
        yield
        reset_processes()

    def call(self, token: str = "", *, host: str = OWN_HOST, api: str | None = API, path: str = "") -> Response:
        """List the tools, or get `path`, through an API with this id."""
        from mcp_tools.app import handler

        headers = {"host": host, "accept": "application/json, text/event-stream", "content-type": "application/json"}
        headers |= {"authorization": f"Bearer {token}"} if token else {}
        sent = event("GET" if path else "POST", path or "/mcp", headers=headers, body=b"" if path else LIST_TOOLS)
        sent["requestContext"]["apiId"] = api
        return invoke(handler, sent)

    def token(self, issuer: Issuer, resource: str = OWN_URL) -> str:
        """Mint an access token for a resource."""
        return issuer.mint_for_mcp("alice", issuer=AUTH, resource=resource)

    def test_a_token_for_the_apis_url_is_accepted(self, issuer: Issuer) -> None:
        """The first request and the following ones list the tools."""
        for _ in range(2):
            answer = self.call(self.token(issuer))
            assert (answer.status, {tool["name"] for tool in answer.json["result"]["tools"]}) == (200, TOOLS)

    @pytest.mark.parametrize("resource", [UNNAMED, RESOURCE, OWN_URL + "/", OWN_URL.replace(API, "another123")])
    def test_a_token_for_another_audience_is_refused(self, issuer: Issuer, resource: str) -> None:
        """The place-holder is no audience either."""
        assert UNNAMED.startswith(NO_API)
        assert self.call(self.token(issuer, resource)).status == 401

    @pytest.mark.parametrize("host", ["another123.execute-api.eu-west-1.amazonaws.com", "api.example.com"])
    def test_the_caller_cannot_choose_the_audience(self, issuer: Issuer, host: str) -> None:
        """The Host header is the caller's. The API's id is API Gateway's."""
        assert self.call(self.token(issuer, f"https://{host}/mcp"), host=host).status == 421
        assert self.call(self.token(issuer, f"https://{host}/mcp")).status == 401

    def test_a_later_event_cannot_change_it(self, issuer: Issuer) -> None:
        """The first request's API is the only one that may invoke the function."""
        assert self.call(self.token(issuer)).status == 200
        other = OWN_HOST.replace(API, "another123")
        assert self.call(self.token(issuer, f"https://{other}/mcp"), host=other, api="another123").status == 421

    @pytest.mark.parametrize("api", [None, "", "x.example.com/", "A1", "a\n", "a" * 33])
    def test_an_event_without_an_apis_id_serves_nothing(self, issuer: Issuer, api: str | None) -> None:
        """API Gateway writes no such event."""
        assert self.call(self.token(issuer), api=api).status in (400, 421)

    def test_clients_find_the_apis_url(self) -> None:
        """The 401 and the metadata name it."""
        assert f"https://{OWN_HOST}{METADATA}" in self.call().headers["www-authenticate"]
        assert self.call(path=f"{METADATA}/mcp").json["resource"] == OWN_URL

    def test_a_start_from_a_snapshot_finds_it_anew(self, issuer: Issuer) -> None:
        """The snapshot was taken while the stack had no API yet."""
        from mcp_tools.app import process

        process.get_ready()
        process.reset()
        process.get_ready()
        assert self.call(self.token(issuer)).status == 200

    def test_a_url_that_is_set_is_the_audience(self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a domain or a proxy of one's own, the API's id means nothing."""
        monkeypatch.setenv("MCP_RESOURCE_URL", RESOURCE)
        assert self.call(self.token(issuer), host="api.example.com").status == 401
        assert self.call(self.token(issuer, RESOURCE), host="api.example.com").status == 200
