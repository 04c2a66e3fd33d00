"""The page is plain files that load nothing from another host, under a policy without exceptions."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette

from dev import node, page
from operations import page as deployed

FILES = sorted(path for path in page.PAGE.rglob("*") if path.suffix in {".html", ".css", ".js", ".svg"})
VENDOR = page.PAGE / "vendor"
VENDORED = {"marked.esm.js": "marked/lib/marked.esm.js", "marked.LICENSE.txt": "marked/LICENSE"}
"""Each vendored file, and its place in npm's packages."""
MODULES = sorted((page.PAGE / "js").rglob("*.js"))
OWN = [path for path in FILES if path.parent != VENDOR]
IMPORT = re.compile(r"""(?:^import\b[^;]*?|\bfrom\s*|import\(")["'](\.[^"']*)["']""", re.MULTILINE)
MARKUP = re.compile(
    r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|parseFromString|createContextualFragment|srcdoc)\b"
    r"|\bdocument\.write|\beval\(|\bnew Function\("
)
STYLES = sorted(page.PAGE.glob("*.css"))
CLASS_GIVEN = re.compile(r"""\bclass(?:: |=|List\.toggle\()([^,})>]*)""")
COMPUTED = {"depth-1", "error", "ok", "rename", "started"}
"""Classes that a module makes of a value: a heading's depth, a call's outcome, a button's name."""
TYPE_SECONDS = 300
MODULE_SECONDS = 120


def name(path: Path) -> str:
    """Return a file's path within the page."""
    return path.relative_to(page.PAGE).as_posix()


def get(path: str) -> httpx2.Response:
    """Return the answer of `make dev` for a path of the page."""

    async def ask() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=Starlette(routes=page.routes))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    with ThreadPoolExecutor() as pool:  # the tests in Chromium have an event loop in this thread
        return pool.submit(asyncio.run, ask()).result()


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes, and the text within scripts and styles."""

    def __init__(self, text: str) -> None:
        """Read the page."""
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.code = ""
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the element."""
        self.elements.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        """End the element."""
        self._within = ""

    def handle_data(self, data: str) -> None:
        """Keep the text of a script or style."""
        if self._within in {"script", "style"}:
            self.code += data.strip()


INDEX = Elements((page.PAGE / "index.html").read_text())


@pytest.mark.parametrize("path", FILES, ids=name)
def test_each_file_is_served_under_the_policy(path: Path) -> None:
    """A browser keeps no copy and guesses no type."""
    answer = get("/" if name(path) == "index.html" else f"/{name(path)}")
    assert (answer.status_code, answer.content) == (200, path.read_bytes())
    assert {header: answer.headers.get(header) for header in page.HEADERS} == page.HEADERS
    assert answer.headers["Content-Type"].split(";")[0] == {
        ".html": "text/html",
        ".css": "text/css",
        ".js": "text/javascript",
        ".svg": "image/svg+xml",
    }.get(path.suffix)


def test_the_policy_has_no_exception() -> None:
    """Nothing runs that is not a file of the page, nothing goes to another host, and no text becomes markup."""
    policy = dict(part.split(" ", 1) for part in page.POLICY.split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "'none'")
    assert "unsafe" not in page.POLICY
    assert "http" not in page.POLICY


def test_an_edit_shows_at_the_next_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The panel is the domain's: the settings name it as soon as it is there."""
    monkeypatch.setattr(page, "ROOT", tmp_path)
    module = tmp_path / "shared" / "taskchat" / "expenses" / "panel.js"
    module.parent.mkdir(parents=True)
    assert (get("/config.json").json()["panel"], get("/panel.js").status_code) == (None, 404)
    for text in ("export const title = 'One';", "export const title = 'Two';"):
        module.write_text(text)
        assert (get("/config.json").json()["panel"], get("/panel.js").text) == ("./panel.js", text)


def test_the_settings_are_those_of_development() -> None:
    """The page takes the API of its own server and a token without a login."""
    settings = get("/config.json").json()
    assert {**settings, "panel": None} == {
        "title": "taskchat",
        "api": "",
        "auth": None,
        "development": True,
        "panel": None,
    }


def test_the_page_has_one_name() -> None:
    """Until it has read its settings, in development and deployed."""
    before = re.search(r"<title>(.*)</title>", (page.PAGE / "index.html").read_text())
    assert before
    assert before[1] == get("/config.json").json()["title"] == deployed.SETTINGS["title"]


def test_index_has_no_code_of_its_own() -> None:
    """The policy forbids scripts, styles and event handlers within the page."""
    assert INDEX.code == ""
    attributes = {attribute for _, attributes in INDEX.elements for attribute in attributes}
    assert not [attribute for attribute in attributes if attribute == "style" or attribute.startswith("on")]


def test_index_loads_only_files_of_the_page() -> None:
    """Each address is relative, so that the page works below any path, and names a file."""
    addresses = [
        value
        for _, attributes in INDEX.elements
        for key in ("src", "href")
        if (value := attributes.get(key)) is not None
    ]
    assert "./js/main.js" in addresses
    assert [address for address in addresses if not re.match(r"\./\w", address)] == []
    assert [address for address in addresses if not (page.PAGE / address).is_file()] == []


def test_labels_and_controls_name_elements_of_the_page() -> None:
    """An id is unique, and every reference to one has its element."""
    ids = [attributes["id"] for _, attributes in INDEX.elements if "id" in attributes]
    named = {value for _, each in INDEX.elements for key in ("for", "aria-controls") if (value := each.get(key))}
    in_code = {found for path in MODULES for found in re.findall(r'byId\("([\w-]+)"\)', path.read_text())}
    assert len(ids) == len(set(ids))
    assert (named | in_code) - set(ids) == set()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_each_import_is_a_file_of_the_page(path: Path) -> None:
    """A browser loads the modules as they are."""
    imports = IMPORT.findall(path.read_text())
    assert [each for each in imports if not (path.parent / each).resolve().is_file()] == []


@pytest.mark.parametrize("path", OWN, ids=name)
def test_no_file_names_another_host_or_reads_markup(path: Path) -> None:
    """Text of a person or a model only becomes text nodes."""
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"\bhttps?://\S*", text) == []
    assert MARKUP.findall(text) == []


@pytest.mark.parametrize("path", STYLES, ids=name)
def test_each_class_of_a_style_is_given_to_an_element(path: Path) -> None:
    """By index.html, by a module of the page, or by the panel of a domain."""
    domains = [*(page.ROOT / "shared" / "taskchat").glob("*/panel.js"), page.ROOT / "docs" / "your-own-tools.md"]
    sources = [each.read_text() for each in (page.PAGE / "index.html", *MODULES, *domains)]
    given = {word for text in sources for found in CLASS_GIVEN.findall(text) for word in re.findall(r"[\w-]+", found)}
    rules = re.sub(r"/\*.*?\*/|\{[^{}]*\}", "", path.read_text(), flags=re.DOTALL)
    styled = set(re.findall(r"\.([a-zA-Z][\w-]*)", rules))
    assert styled
    assert styled - given - COMPUTED == set()


def test_vendored_files_are_those_of_npm() -> None:
    """Each is the file of the pinned version, unchanged."""
    packages = node.install(VENDOR) / "node_modules"
    different = [
        each for each, source in VENDORED.items() if (VENDOR / each).read_bytes() != (packages / source).read_bytes()
    ]
    assert different == []
    assert {path.name for path in VENDOR.iterdir()} == {*VENDORED, "marked.esm.d.ts", *node.FILES}


def test_the_types_of_the_chat_fit() -> None:
    """TypeScript reads the types in the comments, strictly. The areas beside the chat have none."""
    compiler = node.install(VENDOR) / "node_modules" / "typescript" / "bin" / "tsc"
    checked = node.run([node.program(), compiler, "--project", page.PAGE], TYPE_SECONDS, cwd=page.PAGE)
    faults = [line for line in checked.stdout.splitlines() if re.match(r"\w", line) and not line.startswith("js/side/")]
    assert faults == []


def test_the_modules_work_without_a_browser() -> None:
    """Those that read events, order turns and explain errors need none."""
    tested = node.run([node.program(), "--test", Path(__file__).with_name("page_modules.test.mjs")], MODULE_SECONDS)
    assert tested.returncode == 0, tested.stdout
