"""`make rollback` turns a deployment back as one, and `make prune` deletes only versions that no roll-back needs."""

import io
import re
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from botocore.stub import Stubber
from moto import mock_aws

from operations import prune, rollback, stack
from operations.log_source import OperatorError
from operations.stack import Function, Stack
from tests.conftest import ROOT

REGION = "eu-west-1"
NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a client of Lambda that reaches no network."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws(config={"lambda": {"use_docker": False}}):
        yield boto3.client("lambda", region_name=REGION)


def code(text: str) -> bytes:
    """Return a package with one module."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as package:
        package.writestr("app.py", text)
    return packed.getvalue()


def publish(client: Any, name: str, versions: int) -> None:
    """Make a function with that many versions, and point the alias at the newest."""
    iam = boto3.client("iam", region_name=REGION)
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    client.create_function(
        FunctionName=name, Role=role, Runtime="python3.13", Handler="app.f", Code={"ZipFile": code("")}
    )
    for number in range(versions):
        client.update_function_code(FunctionName=name, ZipFile=code(str(number)))
        client.publish_version(FunctionName=name)
    client.create_alias(FunctionName=name, Name="live", FunctionVersion=str(versions))


def live(client: Any, name: str) -> str:
    """Return the version that serves."""
    version: str = client.get_alias(FunctionName=name, Name="live")["FunctionVersion"]
    return version


def function(live: int, *published: int, deployed: bool = True, aliased: tuple[int, ...] = ()) -> Function:
    """Return a function whose live version is of the last deployment, or of an earlier one."""
    times = {version: NOW - timedelta(days=100 - version) for version in published}
    times[live] = NOW if deployed else NOW - timedelta(days=1)
    return Function(f"f{live}", times, live, frozenset({live, *aliased}), "revision")


def a_stack(*names: str, updated_at: datetime = NOW) -> Stack:
    """Return a stack of these functions."""
    return Stack("taskchat-dev", names, (), updated_at)


class TestPrune:
    """Old versions go. The one that serves and two to go back to stay."""

    def test_old_versions_are_deleted(self, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
        """A first run without DELETE deletes nothing and prints the same versions."""
        publish(client, "chat", 5)
        publish(client, "mcp", 1)
        names = ("chat", "mcp")
        assert prune.prune(client, stack.read_functions(client, names), delete=False) == 2
        assert set(stack.read_functions(client, ["chat"])[0].published) == {1, 2, 3, 4, 5}
        assert prune.prune(client, stack.read_functions(client, names), delete=True) == 2
        assert [set(each.published) for each in stack.read_functions(client, names)] == [{3, 4, 5}, {1}]
        assert capsys.readouterr().out.splitlines() == [
            "chat: would delete 1, 2, kept 3, 4, 5",
            "mcp: would delete none, kept 1",
            "chat: deleted 1, 2, kept 3, 4, 5",
            "mcp: deleted none, kept 1",
        ]

    def test_a_version_that_an_alias_weights_stays(self, client: Any) -> None:
        """A canary's traffic goes to it."""
        publish(client, "chat", 6)
        client.update_alias(FunctionName="chat", Name="live", RoutingConfig={"AdditionalVersionWeights": {"1": 0.1}})
        client.create_alias(FunctionName="chat", Name="pinned", FunctionVersion="2")
        [found] = stack.read_functions(client, ["chat"])
        assert prune.old_versions(found) == [3]

    def test_newer_versions_stay(self) -> None:
        """After a roll-back the newest version does not serve."""
        assert prune.old_versions(function(4, 1, 2, 3, 4, 5, 6)) == [1]

    def test_a_gap_does_not_count(self) -> None:
        """The version before is the next older one that exists."""
        assert prune.old_versions(function(9, 1, 2, 4, 9)) == [1]


class TestRollback:
    """All functions of the last deployment go back, or none does."""

    def test_the_aliases_go_back_together(self, client: Any) -> None:
        """Nothing of a canary's weights stays."""
        publish(client, "chat", 3)
        publish(client, "mcp", 2)
        client.update_alias(FunctionName="chat", Name="live", RoutingConfig={"AdditionalVersionWeights": {"1": 0.1}})
        found = a_stack("chat", "mcp", updated_at=NOW - timedelta(days=9999))
        steps = rollback.plan(found, stack.read_functions(client, found.functions))
        rollback.turn_back(client, steps)
        assert (live(client, "chat"), live(client, "mcp")) == ("2", "1")
        weights = client.get_alias(FunctionName="chat", Name="live").get("RoutingConfig", {})
        assert not weights.get("AdditionalVersionWeights")

    def test_it_never_goes_back_to_a_version_that_it_left(self, client: Any) -> None:
        """The deployment after it may fail too. Pruning keeps the last good version, and not the one between."""
        publish(client, "chat", 2)
        long_ago = a_stack("chat", updated_at=NOW - timedelta(days=9999))
        rollback.turn_back(client, rollback.plan(long_ago, stack.read_functions(client, ["chat"])))
        client.update_function_code(FunctionName="chat", ZipFile=code("mended"))
        client.publish_version(FunctionName="chat")
        client.update_alias(FunctionName="chat", Name="live", FunctionVersion="3")
        [found] = stack.read_functions(client, ["chat"])
        assert [step.target for step in rollback.plan(long_ago, [found])] == [1]
        assert prune.old_versions(found) == [2]

    def test_if_one_fails_all_stay(self, client: Any) -> None:
        """The alias that had moved serves the new version again."""
        publish(client, "chat", 2)
        publish(client, "mcp", 2)
        found = a_stack("chat", "mcp", updated_at=NOW - timedelta(days=9999))
        steps = rollback.plan(found, stack.read_functions(client, found.functions))
        client.delete_alias(FunctionName="mcp", Name="live")
        with pytest.raises(ClientError):
            rollback.turn_back(client, steps)
        assert live(client, "chat") == "2"

    def test_if_the_network_ends_all_stay(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error of the connection is no answer of AWS, and undoes the step before it too."""
        publish(client, "chat", 2)
        publish(client, "mcp", 2)
        found = a_stack("chat", "mcp", updated_at=NOW - timedelta(days=9999))
        steps = rollback.plan(found, stack.read_functions(client, found.functions))
        update = client.update_alias

        def fail_for_mcp(**asked: Any) -> Any:
            if asked["FunctionName"] == "mcp":
                raise EndpointConnectionError(endpoint_url="https://lambda.eu-west-1.amazonaws.com")
            return update(**asked)

        monkeypatch.setattr(client, "update_alias", fail_for_mcp)
        with pytest.raises(EndpointConnectionError):
            rollback.turn_back(client, steps)
        assert (live(client, "chat"), live(client, "mcp")) == ("2", "2")

    def test_a_function_that_was_not_deployed_stays(self) -> None:
        """Its version before belongs to an earlier deployment."""
        deployed, untouched = function(3, 1, 2, 3), function(7, 6, 7, deployed=False)
        steps = rollback.plan(a_stack(), [deployed, untouched])
        assert [(step.function, step.target) for step in steps] == [(deployed, 2)]

    def test_a_function_that_the_deployment_made_stays(self) -> None:
        """The API of the version before does not call it."""
        new, old = function(1, 1), function(3, 2, 3)
        assert [step.function for step in rollback.plan(a_stack(), [new, old])] == [old]

    @pytest.mark.parametrize(
        "functions",
        [
            pytest.param([function(1, 1)], id="the first deployment"),
            pytest.param([function(3, 2, 3, deployed=False)], id="nothing was published"),
            pytest.param([function(3, 2, 3), function(5, 5)], id="one has no version before"),
        ],
    )
    def test_it_refuses_if_there_is_nothing_to_go_back_to(self, functions: list[Function]) -> None:
        """No alias moves."""
        with pytest.raises(OperatorError):
            rollback.plan(a_stack(), functions)

    @pytest.mark.parametrize("status", ["UPDATE_IN_PROGRESS", "UPDATE_ROLLBACK_IN_PROGRESS"])
    def test_it_refuses_while_the_stack_changes(self, status: str) -> None:
        """CloudFormation would move the aliases of the other functions on, and leave two releases side by side."""
        found = Stack("taskchat-dev", ("f3",), (), NOW, status)
        with pytest.raises(OperatorError, match=status):
            rollback.plan(found, [function(3, 2, 3)])

    def test_the_clean_up_after_a_deployment_does_not_hinder_it(self) -> None:
        """The aliases have moved by then."""
        found = Stack("taskchat-dev", ("f3",), (), NOW, "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS")
        assert [step.target for step in rollback.plan(found, [function(3, 2, 3)])] == [2]

    def test_a_deployment_under_way_is_stopped(self) -> None:
        """CodeDeploy turns the traffic back by itself."""
        codedeploy = boto3.client("codedeploy", region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x")
        asked = {
            "applicationName": "app",
            "deploymentGroupName": "chat",
            "includeOnlyStatuses": ["Created", "Queued", "InProgress", "Ready"],
        }
        with Stubber(codedeploy) as stub:
            stub.add_response("list_deployments", {"deployments": ["d-1"]}, asked)
            stub.add_response(
                "stop_deployment", {"status": "Pending"}, {"deploymentId": "d-1", "autoRollbackEnabled": True}
            )
            found = Stack("taskchat-dev", ("chat",), (("app", "chat"),), NOW)
            assert rollback.stop_roll_outs(codedeploy, found) == ["d-1"]
            stub.assert_no_pending_responses()


TRANSCRIPTS = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)


def transcript(command: str) -> list[str]:
    """Return the lines of docs/deploy.md from this command on, with the lines of the commands that follow it."""
    [found] = [each for each in TRANSCRIPTS if each.startswith(f"$ {command}\n")]
    return found.splitlines()


def test_the_page_shows_the_output(
    client: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator compares what they see with it. The options are those that make passes on."""
    for name, versions in (("taskchat-prod-ChatFunction", 7), ("taskchat-prod-McpToolsFunction", 4)):
        publish(client, name, versions)
    found = a_stack(
        "taskchat-prod-ChatFunction", "taskchat-prod-McpToolsFunction", updated_at=NOW - timedelta(days=9999)
    )
    monkeypatch.setattr(stack, "read_stack", lambda *_: found)
    shown = ["$ make prune ENV=prod"]
    assert prune.main(["prod"]) == 0
    shown += [*capsys.readouterr().out.splitlines(), "$ make prune ENV=prod DELETE=1"]
    assert prune.main(["prod", "--delete"]) == 0
    assert shown + capsys.readouterr().out.splitlines() == transcript("make prune ENV=prod")
    assert rollback.main(["prod"]) == 0
    assert ["$ make rollback ENV=prod", *capsys.readouterr().out.splitlines()] == transcript("make rollback ENV=prod")


def test_the_stack_names_its_functions_and_roll_outs() -> None:
    """CloudFormation lists the resources in pages."""
    client = boto3.client("cloudformation", region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x")
    kinds = {"chat": "Lambda::Function", "app": "CodeDeploy::Application", "group": "CodeDeploy::DeploymentGroup"}
    summaries = [
        {
            "LogicalResourceId": name,
            "PhysicalResourceId": name,
            "ResourceType": f"AWS::{kind}",
            "LastUpdatedTimestamp": NOW,
            "ResourceStatus": "CREATE_COMPLETE",
        }
        for name, kind in kinds.items()
    ]
    described = {"StackName": "s", "CreationTime": NOW, "StackStatus": "CREATE_COMPLETE"}
    with Stubber(client) as stub:
        stub.add_response("describe_stacks", {"Stacks": [described]}, {"StackName": "s"})
        stub.add_response(
            "list_stack_resources", {"StackResourceSummaries": summaries[:1], "NextToken": "n"}, {"StackName": "s"}
        )
        stub.add_response(
            "list_stack_resources", {"StackResourceSummaries": summaries[1:]}, {"StackName": "s", "NextToken": "n"}
        )
        assert stack.read_stack(client, "s") == Stack("s", ("chat",), (("app", "group"),), NOW, "CREATE_COMPLETE")


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_samconfig_names_stack_and_region(environment: str) -> None:
    """The commands work on the stack that `make deploy` deploys."""
    session, name = stack.connect(environment, ROOT / "samconfig.toml")
    assert (session.region_name, name) == (REGION, f"taskchat-{environment}")


def test_an_unknown_environment_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command prints a line, and no traceback."""
    monkeypatch.chdir(ROOT)
    assert (rollback.main(["nowhere"]), prune.main(["nowhere"])) == (1, 1)
    printed = capsys.readouterr().err
    assert printed.count("samconfig.toml has no [nowhere.deploy.parameters]") == 2
    assert "deleted" not in printed  # without DELETE=1 nothing is
