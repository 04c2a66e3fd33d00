"""The chat page is deployed as files: private, over TLS only, with the policy of `make dev`, and never as a mixture."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.stub import Stubber
from moto import mock_aws

from dev.page import HEADERS, POLICY
from operations import deployment, page
from operations.deployment import Deployment
from operations.log_source import OperatorError
from operations.page import CONFIG, FOR_EVER, FRESH, INDEX, SETTINGS, Bundle
from tests.conftest import ROOT
from tests.test_template import Resource, of_type, template, translate

REGION = "eu-west-1"
BUCKET = "taskchat-prod-pagebucket"
MOST_CHARACTERS = 6_144
"""Of a managed policy, without white space."""


@pytest.fixture(scope="module")
def document() -> Resource:
    """Return the whole template as CloudFormation gets it."""
    return translate(template())


@pytest.fixture(scope="module")
def resources(document: Resource) -> Resource:
    """Return all resources by name."""
    found: Resource = document["Resources"]
    return found


@pytest.fixture(scope="module")
def distribution(resources: Resource) -> Resource:
    """Return the distribution's configuration."""
    found: Resource = of_type(resources, "CloudFront::Distribution")["PageDistribution"]["DistributionConfig"]
    return found


class TestTemplate:
    """The stack has the page only if a parameter says so."""

    def test_nothing_of_it_is_made_by_default(self, document: Resource, resources: Resource) -> None:
        """Every resource and every output with the page's name has the condition."""
        assert document["Parameters"]["Page"]["Default"] == "disabled"
        conditions = {name: each.get("Condition") for name, each in resources.items() if name.startswith("Page")}
        assert conditions.pop("PageRecord") == "HasPageRecord"
        assert len(conditions) == 5
        outputs = {each.get("Condition") for name, each in document["Outputs"].items() if name.startswith("Page")}
        assert {*conditions.values(), *outputs} == {"HasPage"}

    def test_the_bucket_is_private_and_encrypted(self, resources: Resource) -> None:
        """It has no rights by lists, and no policy may make it public."""
        bucket = of_type(resources, "S3::Bucket")["PageBucket"]
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert len(bucket["PublicAccessBlockConfiguration"]) == 4
        [rule] = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"

    def test_only_the_distribution_reads_the_bucket(self, resources: Resource, distribution: Resource) -> None:
        """It signs its requests. A request without TLS is refused, and nothing may be listed."""
        allowed, denied = of_type(resources, "S3::BucketPolicy")["PageBucketPolicy"]["PolicyDocument"]["Statement"]
        assert (allowed["Principal"], allowed["Action"]) == ({"Service": "cloudfront.amazonaws.com"}, "s3:GetObject")
        assert "${PageDistribution}" in str(allowed["Condition"]["StringEquals"]["AWS:SourceArn"])
        assert (denied["Effect"], denied["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})
        origin = next(each for each in distribution["Origins"] if each["Id"] == "page")
        assert origin["OriginAccessControlId"] == {"Fn::GetAtt": ["PageAccess", "Id"]}
        signing = of_type(resources, "CloudFront::OriginAccessControl")["PageAccess"]["OriginAccessControlConfig"]
        assert (signing["SigningBehavior"], signing["SigningProtocol"]) == ("always", "sigv4")

    def test_the_page_has_the_headers_of_make_dev(self, resources: Resource, distribution: Resource) -> None:
        """The API and Better Auth are at its own origin, so the policy names no other."""
        assert distribution["DefaultCacheBehavior"]["ResponseHeadersPolicyId"] == {"Ref": "PageHeaders"}
        policy = of_type(resources, "CloudFront::ResponseHeadersPolicy")["PageHeaders"]["ResponseHeadersPolicyConfig"]
        headers = policy["SecurityHeadersConfig"]
        assert headers["ContentSecurityPolicy"]["ContentSecurityPolicy"] == POLICY
        assert headers["ReferrerPolicy"]["ReferrerPolicy"] == HEADERS["Referrer-Policy"]
        assert headers["StrictTransportSecurity"]["AccessControlMaxAgeSec"] == 2 * 365 * 24 * 3600
        assert headers["FrameOptions"]["FrameOption"] == "DENY"
        assert all(each["Override"] for each in headers.values())

    def test_only_https_is_served(self, distribution: Resource) -> None:
        """A page's own name has TLS 1.2; the API is called with TLS 1.2 only."""
        behaviours = [distribution["DefaultCacheBehavior"], *distribution["CacheBehaviors"]]
        assert {each["ViewerProtocolPolicy"] for each in behaviours} <= {"redirect-to-https", "https-only"}
        condition, own, _ = distribution["ViewerCertificate"]["Fn::If"]
        assert (condition, own["MinimumProtocolVersion"]) == ("HasPageDomain", "TLSv1.2_2021")
        for origin in distribution["Origins"][1:]:
            configured = origin["CustomOriginConfig"]
            assert (configured["OriginProtocolPolicy"], configured["OriginSSLProtocols"]) == ("https-only", ["TLSv1.2"])

    def test_the_api_and_better_auth_are_at_the_page_s_own_origin(self, distribution: Resource) -> None:
        """Each request reaches them as it is, and nothing of it is cached or replaced by an error page."""
        behaviours = distribution["CacheBehaviors"]
        targets = [("/api/auth/*", "auth"), ("/api/*", "api")]  # CloudFront takes the first that fits
        assert [(each["PathPattern"], each["TargetOriginId"]) for each in behaviours] == targets
        for behaviour in behaviours:
            assert set(behaviour["AllowedMethods"]) >= {"GET", "POST", "PATCH", "DELETE"}
            assert behaviour["CachePolicyId"] == "4135ea2d-6df8-44a3-9df3-4b5a84be39ad"  # CachingDisabled
            assert behaviour["OriginRequestPolicyId"] == "b689b0a8-53d0-40ab-baf2-68738e2966ac"  # all but Host
        assert behaviours[1]["Compress"] is False
        assert "CustomErrorResponses" not in distribution
        auth = next(each for each in distribution["Origins"] if each["Id"] == "auth")
        assert auth["DomainName"] == {"Fn::Select": [2, {"Fn::Split": ["/", {"Ref": "AuthIssuer"}]}]}

    def test_the_api_that_streams_serves_the_page(self, distribution: Resource) -> None:
        """If the stack has one. The path of its stage comes before that of the request."""
        api = next(each for each in distribution["Origins"] if each["Id"] == "api")
        condition, streaming, usual = api["DomainName"]["Fn::If"]
        assert condition == "IsStreaming"
        assert ("${StreamApi}" in streaming["Fn::Sub"], "${HttpApi}" in usual["Fn::Sub"]) == (True, True)
        assert api["OriginPath"] == {"Fn::If": ["IsStreaming", "/live", ""]}

    def test_the_domain_needs_both_parameters(self, document: Resource) -> None:
        """And the page itself. CloudFront reads certificates of one region only."""
        [assertion] = document["Rules"]["PageDomainNeedsBoth"]["Assertions"]
        assert {"Fn::Equals": [{"Ref": "Page"}, "enabled"]} in assertion["Assert"]["Fn::And"]
        pattern = document["Parameters"]["PageCertificateArn"]["AllowedPattern"]
        assert re.fullmatch(pattern, "arn:aws:acm:us-east-1:123456789012:certificate/a-1")
        assert not re.fullmatch(pattern, "arn:aws:acm:eu-west-1:123456789012:certificate/a-1")


@pytest.fixture(scope="module")
def policies() -> dict[str, Any]:
    """Return the policies of the role that deploys."""
    text = re.sub(r"!\w+", "", (ROOT / "deploy/deployer.yaml").read_text())
    return {
        name: each["Properties"]["PolicyDocument"]
        for name, each in yaml.safe_load(text)["Resources"].items()
        if each["Type"] == "AWS::IAM::ManagedPolicy"
    }


class TestDeployer:
    """The role that deploys may make the page and upload it."""

    def test_each_policy_fits(self, policies: dict[str, Any]) -> None:
        """IAM refuses a longer one. Names that CloudFormation fills in take about as much as their places."""
        for name, policy in policies.items():
            assert len(json.dumps(policy, separators=(",", ":"))) < MOST_CHARACTERS, name

    def test_it_may_do_what_make_page_does(self, policies: dict[str, Any]) -> None:
        """List the bucket, put and delete files, and invalidate."""
        allowed = {action for each in policies["DeployPage"]["Statement"] for action in each["Action"]}
        needed = {"s3:ListBucket", "s3:PutObject", "s3:DeleteObject", "cloudfront:CreateInvalidation"}
        assert needed <= allowed
        [files, _] = policies["DeployPage"]["Statement"]
        assert files["Resource"].endswith(":s3:::taskchat-${EnvironmentName}-*")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a small page."""
    (tmp_path / "js").mkdir()
    (tmp_path / "index.html").write_text(
        '<link href="./style.css"><script src="js/main.js"></script><a href="https://example.com/">x</a>'
    )
    (tmp_path / "style.css").write_text("p {}")
    (tmp_path / "js" / "main.js").write_text("main()")
    (tmp_path / "notes.md").write_text("no part of the page")
    return tmp_path


class TestHowTo:
    """docs/page.md names what there is."""

    TEXT = (ROOT / "docs" / "page.md").read_text()

    def test_its_parameters_and_outputs_exist(self, document: Resource) -> None:
        """Those in code, such as `PageUrl` and `Page=enabled`, and with a value that the template accepts."""
        known = {*document["Parameters"], *document["Outputs"]}
        named = set(re.findall(r"`((?:Page|Hosted|Auth|Cors|Stream|Api)[A-Z][A-Za-z]+)`", self.TEXT))
        assert {"PageUrl", "PageDomainName", "PageTarget", "PageBucketName"} <= named <= known
        for name, value in re.findall(r'"([A-Z]\w+)=(\w+)"', self.TEXT):
            assert value in document["Parameters"][name]["AllowedValues"]

    def test_its_commands_exist(self) -> None:
        """Each is a target of the Makefile."""
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(re.findall(r"^make ([a-z]+)", self.TEXT, re.MULTILINE)) <= set(targets)

    def test_better_auth_trusts_the_page(self) -> None:
        """By the variable that the page names."""
        assert "PAGE_URL" in self.TEXT
        assert "process.env.PAGE_URL" in (ROOT / "dev/better_auth/auth.mjs").read_text()


class TestBundle:
    """A browser gets the files of one bundle."""

    def test_the_page_itself_is_whole(self) -> None:
        """Every module that a file imports is there, and every file that index.html names."""
        made = page.bundle(panel=page.domain_panel())
        for path, content in made.files.items():
            for _, wanted in re.findall(rb"""(from|import\() ?["'](\.[^"']+)["']""", content):
                found = (Path("/") / path).parent.joinpath(wanted.decode()).resolve().relative_to("/")
                assert str(found) in made.files, (path, wanted)
        assert set(re.findall(r'(?:href|src)="\./([^"]+)"', made.files[INDEX].decode())) <= set(made.files)
        assert made.size < 300_000
        assert not [
            path for path in made.files if path.endswith((".md", "package.json", "package-lock.json", "tsconfig.json"))
        ]

    def test_all_but_two_files_have_a_name_of_their_contents(self, source: Path) -> None:
        """index.html names the folder, and comes last."""
        made = page.bundle(source)
        assert list(made.files) == [f"{made.folder}/js/main.js", f"{made.folder}/style.css", CONFIG, INDEX]
        assert made.files[INDEX].decode() == (
            f'<link href="./{made.folder}/style.css"><script src="./{made.folder}/js/main.js"></script>'
            '<a href="https://example.com/">x</a>'
        )
        (source / "style.css").write_text("p { margin: 0 }")
        assert page.bundle(source).folder != made.folder

    def test_config_json_names_the_panel(self, source: Path) -> None:
        """Without a module it is null."""
        (source / "domain.js").write_text("export const title = 'Tasks';")
        made = page.bundle(source, source / "domain.js")
        assert json.loads(made.files[CONFIG]) == {**SETTINGS, "panel": f"./{made.folder}/panel.js"}
        assert f"{made.folder}/panel.js" in made.files
        assert json.loads(page.bundle(source).files[CONFIG])["panel"] is None

    def test_a_file_that_is_missing_is_said(self, source: Path) -> None:
        """It would be an empty page."""
        (source / "style.css").unlink()
        with pytest.raises(OperatorError, match=r"style\.css"):
            page.bundle(source)

    def test_make_page_shows_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Each file with its size, the sum, and config.json. The files lie in .dev/page, and old ones go."""
        monkeypatch.setenv("TASKCHAT_DEV_DIR", str(tmp_path))
        (tmp_path / "page").mkdir()
        (tmp_path / "page" / "old.js").write_text("")
        assert page.main([]) == 0
        shown = capsys.readouterr().out
        written = [path for path in (tmp_path / "page").rglob("*") if path.is_file()]
        assert f"bytes in {len(written)} files" in shown
        assert all(f"{path.stat().st_size:,}" in shown for path in written)
        assert '"development": false' in shown
        assert not (tmp_path / "page" / "old.js").exists()


class TestUpload:
    """`make page ENV=…` puts the bundle where the deployment serves it."""

    @pytest.fixture
    def session(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """Return a session that reaches no network, with an empty bucket."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        with mock_aws():
            session = boto3.Session(region_name=REGION)
            place: Any = {"LocationConstraint": REGION}
            session.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
            yield session

    @pytest.fixture
    def found(self, session: Any) -> Deployment:
        """Return a deployment with a distribution."""
        origin = {"Id": "page", "DomainName": "x.s3.amazonaws.com", "S3OriginConfig": {"OriginAccessIdentity": ""}}
        made = session.client("cloudfront").create_distribution(
            DistributionConfig={
                "CallerReference": "test",
                "Comment": "",
                "Enabled": True,
                "Origins": {"Quantity": 1, "Items": [origin]},
                "DefaultCacheBehavior": {"TargetOriginId": "page", "ViewerProtocolPolicy": "https-only"},
            }
        )
        outputs = {
            "PageUrl": "https://d1.cloudfront.net",
            "PageBucketName": BUCKET,
            "PageDistributionId": made["Distribution"]["Id"],
        }
        return Deployment(session, outputs, {})

    def keys(self, session: Any) -> set[str]:
        """Return the keys of the bucket."""
        return {each["Key"] for each in session.client("s3").list_objects_v2(Bucket=BUCKET).get("Contents", ())}

    def test_each_file_has_its_type_and_its_time(self, session: Any, found: Deployment, source: Path) -> None:
        """Browsers ask for index.html and config.json each time, and keep the others."""
        made = page.bundle(source)
        page.deploy(found, made)
        heads = {key: session.client("s3").head_object(Bucket=BUCKET, Key=key) for key in self.keys(session)}
        assert heads.keys() == made.files.keys()
        assert {key: head["ContentType"].partition(";")[0] for key, head in heads.items()} == {
            INDEX: "text/html",
            CONFIG: "application/json",
            f"{made.folder}/style.css": "text/css",
            f"{made.folder}/js/main.js": "text/javascript",
        }
        assert {key for key, head in heads.items() if head["CacheControl"] == FRESH} == {INDEX, CONFIG}
        assert {head["CacheControl"] for head in heads.values()} == {FRESH, FOR_EVER}

    def test_the_distribution_reads_the_fresh_files_again(
        self, session: Any, found: Deployment, source: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It has one invalidation, and the command says where the page is."""
        page.deploy(found, page.bundle(source))
        client, name = session.client("cloudfront"), found.outputs["PageDistributionId"]
        [made] = client.list_invalidations(DistributionId=name)["InvalidationList"]["Items"]
        batch = client.get_invalidation(DistributionId=name, Id=made["Id"])["Invalidation"]["InvalidationBatch"]
        assert set(batch["Paths"]["Items"]) == {"/", "/index.html", "/config.json"}
        assert "The page is at https://d1.cloudfront.net" in capsys.readouterr().out

    def test_the_bundle_before_stays(self, session: Any, found: Deployment, source: Path) -> None:
        """A page that is open loads its modules. Older folders go; other objects are not touched."""
        session.client("s3").put_object(Bucket=BUCKET, Key="robots.txt", Body=b"")
        made: list[Bundle] = []
        for text in ("p {}", "b {}", "i {}"):
            (source / "style.css").write_text(text)
            made.append(page.bundle(source))
            page.deploy(found, made[-1])
        folders = {key.partition("/")[0] for key in self.keys(session) if "/" in key}
        assert folders == {made[1].folder, made[2].folder}
        assert "robots.txt" in self.keys(session)

    def test_a_stack_without_a_page_is_said(self, session: Any, source: Path) -> None:
        """Nothing is uploaded."""
        with pytest.raises(OperatorError, match="Page=enabled"):
            page.deploy(Deployment(session, {}, {}), page.bundle(source))

    def test_the_outputs_come_from_the_stack(self, session: Any) -> None:
        """Those that `make page` reads are in the template."""
        client = session.client("cloudformation")
        outputs = [{"OutputKey": name, "OutputValue": "x"} for name in template()["Outputs"]]
        stack = {"StackName": "taskchat-prod", "CreationTime": "2026-11-22", "StackStatus": "CREATE_COMPLETE"}
        with Stubber(client) as stubbed:
            stubbed.add_response("describe_stacks", {"Stacks": [{**stack, "Outputs": outputs}]})
            found = deployment.describe(session, client, "taskchat-prod")
        assert {"PageUrl", "PageBucketName", "PageDistributionId"} <= found.outputs.keys()

    def test_an_environment_that_is_unknown_ends_with_1(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The line says which table is missing."""
        assert page.main(["--env", "nowhere"]) == 1
        assert "nowhere" in capsys.readouterr().err
