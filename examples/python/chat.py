"""Take one turn with the standard library, and print its events as they come."""

import http.client
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

URL = os.environ.get("URL", "http://127.0.0.1:8000")


def identify() -> tuple[str, str]:
    """Return a token and its user id: from the environment, or from the development server."""
    if "TOKEN" in os.environ:
        return os.environ["TOKEN"], os.environ["USER_ID"]
    with urllib.request.urlopen(f"{URL}/dev/token", timeout=10) as answer:
        found = json.load(answer)
    return found["token"], found["user_id"]


def send(message: str, key: str) -> http.client.HTTPResponse:
    """Send a message, and return the answer before its end. The same key makes a retry safe."""
    token, user_id = identify()
    place = urlsplit(URL)
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    connection = kind(place.netloc, timeout=60)
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "Idempotency-Key": key,
    }
    body = json.dumps({"message": message}, ensure_ascii=False).encode()
    connection.request("POST", f"/api/{user_id}/chat", body, headers)
    return connection.getresponse()


def read_events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    """Yield the name and the data of each event when it comes."""
    name = ""
    for line in answer:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def main() -> None:
    """Print the tool calls and the words of one turn."""
    answer = send(" ".join(sys.argv[1:]) or "Add buy milk, then show my tasks", str(uuid4()))
    if answer.status != 200:
        problem = json.load(answer)
        raise SystemExit(f"{problem['title']} {problem.get('detail', '')} ({problem['type']})")
    for name, data in read_events(answer):
        match name:
            case "tool_started":
                print(data["tool"], json.dumps(data["arguments"]))
            case "text":
                print(data["text"], end="", flush=True)
            case "finished":
                print()
            case "failed":  # the same request with the same key goes on from here
                raise SystemExit(data["title"])


if __name__ == "__main__":
    main()
