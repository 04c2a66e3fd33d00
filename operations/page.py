"""Bundle the files of the chat page, and put them where a deployment serves them (`make page [ENV=…]`).

All files but two lie in a folder with a name that is made of their contents, so browsers may keep them for ever.
index.html names that folder, and comes last: a browser gets the files of one bundle, never a mixture.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from operations import deployment
from operations.deployment import Deployment
from operations.log_source import OperatorError
from operations.options import local_file

ROOT: Final = Path(__file__).parent.parent
SOURCE: Final = ROOT / "page"
SETTINGS: Final = {"title": "taskchat", "api": "", "auth": "/api/auth", "development": False}
"""What config.json says: the distribution has the API and Better Auth at the page's own origin."""

TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""The type of each file, by the end of its name. A file with another one is not part of the page."""

UNSERVED: Final = frozenset({"tsconfig.json", "vendor/package.json", "vendor/package-lock.json"})
INDEX: Final = "index.html"
CONFIG: Final = "config.json"
PANEL: Final = "panel.js"
FRESH: Final = "no-cache"
"""The browser and the distribution ask for a new one each time, and get 304 if there is none."""
FOR_EVER: Final = "public, max-age=31536000, immutable"
_FOLDER: Final = re.compile(r"([0-9a-f]{12})/")
_OWN_ADDRESS: Final = re.compile(r'\b(href|src)="(?:\./)?([\w.-]+(?:/[\w.-]+)*)"')


@dataclass(frozen=True)
class Bundle:
    """The page as a server has it: the content of each file by its path. index.html is the last."""

    folder: str
    files: dict[str, bytes]

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return sum(map(len, self.files.values()))


def bundle(source: Path = SOURCE, panel: Path | None = None) -> Bundle:
    """Return the page, with the panel's module if there is one. Raises OperatorError."""
    sources = dict(_read(source, panel))
    if INDEX not in sources:
        raise OperatorError(f"There is no {source / INDEX}.")
    index = sources.pop(INDEX)
    folder = _digest(sources)
    own = {f"{folder}/{path}": content for path, content in sources.items()}
    written = {**SETTINGS, "panel": f"./{folder}/{PANEL}" if panel else None}
    config = json.dumps(written, indent=2).encode() + b"\n"
    return Bundle(folder, {**own, CONFIG: config, INDEX: _point(index.decode(), folder, sources).encode()})


def domain_panel(root: Path = ROOT) -> Path | None:
    """Return the module that the domain's folder brings, or None."""
    return next(iter(sorted((root / "shared" / "taskchat").glob(f"*/{PANEL}"))), None)


def _read(source: Path, panel: Path | None) -> Iterator[tuple[str, bytes]]:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and path.suffix in TYPES and name not in UNSERVED:
            yield name, path.read_bytes()
    if panel:
        yield PANEL, panel.read_bytes()


def _digest(files: Mapping[str, bytes]) -> str:
    parts = [f"{path} {hashlib.sha256(content).hexdigest()}" for path, content in sorted(files.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _point(index: str, folder: str, files: Mapping[str, bytes]) -> str:
    """Return index.html with the folder before each file of the bundle that it names. Raises OperatorError."""
    named = {path for _, path in _OWN_ADDRESS.findall(index)}
    if missing := named - files.keys() - {INDEX, CONFIG}:
        raise OperatorError(f"{INDEX} names what is not there: {', '.join(sorted(missing))}.")
    return _OWN_ADDRESS.sub(
        lambda found: f'{found[1]}="./{folder}/{found[2]}"' if found[2] in files else found[0], index
    )


def write(made: Bundle, directory: Path) -> None:
    """Write the bundle, in place of the one that is there."""
    shutil.rmtree(directory, ignore_errors=True)
    for path, content in made.files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)


def upload(session: Any, bucket: str, distribution: str, made: Bundle) -> None:
    """Put the files into the bucket, delete old folders, and have the distribution read the two fresh files again."""
    s3 = session.client("s3")
    kept = {made.folder, _folder_before(s3, bucket)}
    for path, content in made.files.items():
        s3.put_object(Bucket=bucket, Key=path, Body=content, **_headers(path))
    _delete_folders(s3, bucket, kept)
    paths = ["/", f"/{INDEX}", f"/{CONFIG}"]
    session.client("cloudfront").create_invalidation(
        DistributionId=distribution,
        InvalidationBatch={"Paths": {"Quantity": len(paths), "Items": paths}, "CallerReference": str(uuid.uuid4())},
    )


def _headers(path: str) -> dict[str, str]:
    kept = FRESH if path in (INDEX, CONFIG) else FOR_EVER
    return {"ContentType": TYPES[Path(path).suffix], "CacheControl": kept}


def _folder_before(s3: Any, bucket: str) -> str:
    """Return the folder that the bucket's index.html names: pages that are open load modules from it."""
    try:
        index = s3.get_object(Bucket=bucket, Key=INDEX)["Body"].read().decode()
    except s3.exceptions.NoSuchKey:
        return ""
    found = _FOLDER.search(index)
    return found[1] if found else ""


def _delete_folders(s3: Any, bucket: str, kept: Container[str]) -> None:
    for listed in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        folders = {each["Key"]: _FOLDER.match(each["Key"]) for each in listed.get("Contents", ())}
        old = [{"Key": key} for key, folder in folders.items() if folder and folder[1] not in kept]
        if old:
            s3.delete_objects(Bucket=bucket, Delete={"Objects": old, "Quiet": True})


def show(made: Bundle) -> None:
    """Print each file with its size, the sum, and config.json."""
    for path, content in made.files.items():
        print(f"{len(content):>9,}  {path}")
    print(f"{made.size:>9,}  bytes in {len(made.files)} files\n\n{CONFIG}:\n{made.files[CONFIG].decode()}")


def deploy(found: Deployment, made: Bundle) -> None:
    """Upload the bundle to a deployment, and say where it is. Raises OperatorError."""
    try:
        bucket, distribution = found.outputs["PageBucketName"], found.outputs["PageDistributionId"]
    except KeyError:
        raise OperatorError("The stack has no page: deploy it with Page=enabled.") from None
    upload(found.session, bucket, distribution, made)
    print(f"Uploaded to {bucket}. The page is at {found.outputs['PageUrl']}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the bundle and show it, and upload it if an environment is named. The exit code is 1 if that fails."""
    parser = argparse.ArgumentParser(prog="make page")
    parser.add_argument("--env", help="the deployment's table in samconfig.toml")
    options = parser.parse_args(arguments)
    try:
        found = deployment.find(options.env) if options.env else None
        made = bundle(panel=domain_panel())
        write(made, local_file("page"))
        show(made)
        if found:
            deploy(found, made)
    except (OperatorError, ClientError, BotoCoreError) as error:
        print(f"The page was not put there: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
