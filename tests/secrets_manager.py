"""Serve moto's Secrets Manager over HTTP, for functions that run in other processes."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from moto import mock_aws

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "eu-central-1"}


class SecretsManager:
    """Hold one secret, and count the reads of it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.arn: str = client.create_secret(Name="taskchat", SecretString="{}")["ARN"]
        self.url = ""
        self.reads = 0
        self.is_down = False

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables with which a function reads the secret here."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": self.url, "APP_SECRET_ARN": self.arn}

    def put(self, **values: str) -> None:
        """Replace the secret's value."""
        self._client.put_secret_value(SecretId=self.arn, SecretString=json.dumps(values))

    def answer(self, body: bytes) -> tuple[int, bytes]:
        """Return the status and the body of the answer to GetSecretValue."""
        self.reads += 1
        if self.is_down:
            return 500, b'{"__type": "InternalServiceError"}'
        found = self._client.get_secret_value(SecretId=json.loads(body)["SecretId"])
        return 200, json.dumps({name: found[name] for name in ("ARN", "Name", "SecretString")}).encode()


@contextmanager
def running() -> Iterator[SecretsManager]:
    """Run a server with one empty secret."""
    with mock_aws():
        held = SecretsManager(boto3.client("secretsmanager", region_name=CREDENTIALS["AWS_DEFAULT_REGION"]))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                status, content = held.answer(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(status)
                self.send_header("content-type", "application/x-amz-json-1.1")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Write nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=[0.02])
            thread.start()
            held.url = f"http://127.0.0.1:{server.server_port}"
            try:
                yield held
            finally:
                server.shutdown()
                thread.join()
