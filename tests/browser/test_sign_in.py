"""People sign up, in and out at a real Better Auth, in the page's own form. It has the page's origin in one test."""

import secrets
from collections.abc import Callable, Iterator
from uuid import uuid4

import httpx2
import psycopg
import pytest
from playwright.sync_api import Page, expect

from dev import better_auth, processes
from dev.postgres import DATABASE, OWNER, Postgres
from testing.callers import RESOURCE
from tests.browser import accessibility, auth_gateway
from tests.browser.conftest import HOST, Start
from tests.browser.names import AUTH
from tests.browser.person import Chat, Person
from tests.browser.test_phone import PHONE, check_layout
from tests.conftest import serving

NewPerson = Callable[..., Person]


def auth_database(server: Postgres, name: str) -> str:
    """Make a database for a Better Auth, and return its URL."""
    with psycopg.connect(server.superuser_url, autocommit=True) as connection:
        connection.execute(f"create database {name} owner {OWNER}")
    return server.owner_url.replace(f"/{DATABASE}?", f"/{name}?")


@pytest.fixture(scope="module")
def url(start: Start, server: Postgres) -> Iterator[str]:
    """Serve the page, with a Better Auth of another origin that knows it."""
    port = processes.free_port(HOST)
    page = f"http://{HOST}:{port}"
    with (
        better_auth.running(auth_database(server, "browser_auth"), RESOURCE, page=page) as address,
        serving(auth_gateway.create_app(address, page)) as gateway,
    ):
        keys = httpx2.get(f"{address}/api/auth/jwks", trust_env=False).text
        identity = {"AUTH_ISSUER": address, "AUTH_AUDIENCE": address, "AUTH_JWKS_JSON": keys}
        with start(port=port, **identity, **{AUTH: f"{gateway}/api/auth"}) as url:
            yield url


@pytest.fixture
def same_origin(start: Start, server: Postgres) -> Iterator[str]:
    """Serve the page with Better Auth below its own `/api/auth`, as a deployment's distribution does."""
    port = processes.free_port(HOST)
    database = auth_database(server, "same_origin_auth")
    with better_auth.running(database, RESOURCE, page=f"http://{HOST}:{port}") as address:
        keys = httpx2.get(f"{address}/api/auth/jwks", trust_env=False).text
        identity = {"AUTH_ISSUER": address, "AUTH_AUDIENCE": address, "AUTH_JWKS_JSON": keys}
        with start(port=port, **identity, **{AUTH: "/api/auth"}) as url:
            yield url


@pytest.fixture
def alice(new_person: NewPerson, url: str) -> Person:
    """Return a person who has no account yet."""
    person = new_person(url)
    person.expected = ("401 ",)  # the page asks whether there is a session
    return person


def open_page(person: Person) -> Page:
    """Open the page."""
    page = person.context.new_page()
    page.goto(person.url)
    return page


def sign(page: Page, how: str, email: str, password: str) -> None:
    """Fill the form in, and send it."""
    page.get_by_role("textbox", name="Email address").fill(email)
    page.get_by_role("textbox", name="Password").fill(password)
    page.get_by_role("button", name=how, exact=True).click()


def sign_up(person: Person) -> tuple[Chat, str, str]:
    """Make an account, and return the chat, the address and the password."""
    page, email, password = open_page(person), f"{uuid4().hex}@example.com", secrets.token_hex(8)
    page.get_by_role("button", name="I have no account yet").click()
    sign(page, "Sign up", email, password)
    chat = Chat(page)
    expect(chat.message).to_be_editable()
    return chat, email, password


def test_a_person_signs_up_and_chats(alice: Person) -> None:
    """The session outlives a reload, and no token is in the browser's storage."""
    chat, email, _ = sign_up(alice)
    chat.say("Add tea", "Added tea")
    chat.page.reload()
    chat.expect("Added tea")
    expect(chat.conversations).to_contain_text(email.partition("@")[0])
    stored = str(
        chat.page.evaluate("() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])")
    )
    assert "eyJ" not in stored
    assert "session" not in stored


def test_a_person_signs_out_and_in_again(alice: Person) -> None:
    """Nothing is left in the browser. A wrong password is said, and the right one brings all back."""
    chat, email, password = sign_up(alice)
    chat.say("Add tea", "Added tea")
    chat.button("Sign out").click()
    page = chat.page
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert page.evaluate("() => localStorage.length + sessionStorage.length") == 0
    expect(page.get_by_text("tea")).to_have_count(0)
    sign(page, "Sign in", email, "wrong " + password)
    expect(page.get_by_role("alert")).to_contain_text("The email address or the password is wrong")
    sign(page, "Sign in", email, password)
    expect(chat.tasks).to_contain_text("tea")


def test_what_another_person_has_not_got_an_answer_to_stays(alice: Person) -> None:
    """They use the same browser, and find their message again."""
    chat, _, _ = sign_up(alice)
    chat.say("Add tea", "Added tea")
    chat.page.evaluate("() => localStorage.setItem('taskchat:message:bob:1', 'theirs')")
    chat.button("Sign out").click()
    expect(chat.page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert chat.page.evaluate("() => ({ ...localStorage })") == {"taskchat:message:bob:1": "theirs"}


def test_a_person_signs_in_at_the_pages_own_origin(same_origin: str, new_person: NewPerson) -> None:
    """The arrangement of a deployment: the session's cookie is the page's own, and the policy names no other origin."""
    person = new_person(same_origin)
    person.expected = ("401 ",)
    chat, email, password = sign_up(person)
    chat.say("Add tea", "Added tea")
    assert [each["domain"] for each in person.context.cookies() if "session" in each["name"]] == [HOST]
    chat.button("Sign out").click()
    expect(chat.page.get_by_role("heading", name="Sign in")).to_be_visible()
    sign(chat.page, "Sign in", email, password)
    expect(chat.tasks).to_contain_text("tea")


def test_the_other_tab_signs_out_too(alice: Person) -> None:
    """It shows nothing of the person any more."""
    chat, _, _ = sign_up(alice)
    chat.say("Add tea", "Added tea")
    other = Chat(open_page(alice))
    expect(other.tasks).to_contain_text("tea")
    other.message.fill("Add salt")
    chat.button("Sign out").click()
    expect(other.page.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(other.page.get_by_text("tea")).to_have_count(0)
    assert other.page.evaluate("() => localStorage.length + sessionStorage.length") == 0


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_form_breaks_no_rule(url: str, new_person: NewPerson, options: dict[str, object], scheme: str) -> None:
    """axe-core finds nothing, also with a problem in it, and it fits on a telephone."""
    person = new_person(url, color_scheme=scheme, **options)
    person.expected = ("401 ",)
    accessibility.prepare(person)
    page = open_page(person)
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert accessibility.violations(page) == []
    sign(page, "Sign in", "nobody@example.com", "wrong password")
    expect(page.get_by_role("alert")).to_be_visible()
    assert accessibility.violations(page) == []
    if options:
        check_layout(page)
