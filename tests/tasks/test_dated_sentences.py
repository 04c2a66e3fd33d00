"""The service, with the stand-in model, keeps the dates of plain sentences as rows, and undoes what a turn did."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from dev.standin_model.tasks import domain
from tests.conftest import Person

Rows = psycopg.Connection[dict[str, Any]]
ZONES = ("Pacific/Kiritimati", "Pacific/Pago_Pago", "Europe/Paris", "Asia/Kathmandu", None)
"""At every moment two of them have different days. Without a zone it is UTC."""

pytestmark = [
    pytest.mark.parametrize("model_api", ["responses", "chat_completions"], indirect=True),
    pytest.mark.parametrize("database_url", ["direct"], indirect=True),
]


class Talk:
    """Send messages of one conversation from one zone, and read the rows they leave."""

    def __init__(self, person: Person, rows: Rows, zone: str | None = None) -> None:
        self.person, self.rows, self.zone = person, rows, zone
        self.conversation_id: str | None = None

    def say(self, message: str) -> Any:
        """Take a turn, and return its answer. No call may fail."""
        body = {"message": message, "conversation_id": self.conversation_id, "timezone": self.zone}
        answer = self.person.post(body).json
        self.conversation_id = answer["conversation_id"]
        assert {call["outcome"] for call in answer["tool_calls"]} <= {"ok"}, answer
        return answer

    def today(self) -> date:
        """Return the day in the person's zone on which the last message was said."""
        query = "select created_at from message where user_id = %s and role = 'user' order by created_at desc limit 1"
        [said] = self.rows.execute(query, (self.person.id,)).fetchall()
        return said["created_at"].astimezone(ZoneInfo(self.zone or "UTC")).date()

    def due(self, title: str) -> tuple[Any, ...]:
        """Return the day, the instant and the zone that the task's row has."""
        query = "select due_on, due_at, due_zone from task where user_id = %s and title = %s"
        [row] = self.rows.execute(query, (self.person.id, title)).fetchall()
        return tuple(row.values())

    def task_id(self, title: str) -> int:
        """Return the task's id."""
        query = "select id from task where user_id = %s and title = %s"
        [row] = self.rows.execute(query, (self.person.id, title)).fetchall()
        return int(row["id"])

    def named(self, title: str, due: str = "") -> str:
        """Return the name of the task in an answer."""
        return f"{title} ({self.task_id(title)}{due and f', {due}'})"

    def tasks(self) -> list[tuple[Any, ...]]:
        """Return all that a person knows of their tasks. The ids of deleted ones do not come back."""
        query = "select title, description, completed, due_on, due_at, due_zone from task where user_id = %s"
        return sorted((tuple(row.values()) for row in self.rows.execute(query, (self.person.id,))), key=str)


@pytest.fixture(params=ZONES)
def talk(request: pytest.FixtureRequest, alice: Person, rows: Rows) -> Talk:
    """Begin a conversation in each zone."""
    return Talk(alice, rows, request.param)


def weekday_after(day: date, weekday: int) -> date:
    """Return the first such day after the given one."""
    return next(each for each in (day + timedelta(n) for n in range(1, 8)) if each.weekday() == weekday)


def at(day: date, hour: int, zone: str | None) -> tuple[Any, ...]:
    """Return the columns of an hour of a day."""
    instant = datetime.combine(day, time(hour), ZoneInfo(zone or "UTC"))
    return day, instant.astimezone(UTC), zone or "UTC"


def test_days_and_hours_are_kept_as_they_were_meant(talk: Talk) -> None:
    """A day has no instant. An hour is one in the person's zone."""
    talk.say("add buy milk tomorrow, the dentist on Friday at 9 and call mum on 2027-02-28")
    today = talk.today()
    assert talk.due("buy milk") == (today + timedelta(1), None, None)
    assert talk.due("dentist") == at(weekday_after(today, 4), 9, talk.zone)
    assert talk.due("call mum") == (date(2027, 2, 28), None, None)
    talk.say("remind me tomorrow at 9pm to sleep")
    assert talk.due("sleep") == at(talk.today() + timedelta(1), 21, talk.zone)


def test_a_task_moves_and_keeps_its_hour_until_its_date_is_cleared(talk: Talk) -> None:
    """The hour stays the same on a day with another offset."""
    talk.say("add the dentist on 2027-01-20 at 9")
    moved = talk.say("move the dentist to 2027-07-20")
    assert [call["tool"] for call in moved["tool_calls"]] == ["list_tasks", "update_task"]
    assert talk.due("dentist") == at(date(2027, 7, 20), 9, talk.zone)
    talk.say("move the dentist to Friday at 10")
    assert talk.due("dentist") == at(weekday_after(talk.today(), 4), 10, talk.zone)
    talk.say("clear the date of the dentist")
    assert talk.due("dentist") == (None, None, None)
    talk.say(f"move {talk.task_id('dentist')} to next Monday")
    assert talk.due("dentist") == (weekday_after(talk.today(), 0), None, None)


def test_a_move_keeps_the_zone_in_which_the_hour_was_meant(alice: Person, rows: Rows) -> None:
    """The person has travelled since."""
    Talk(alice, rows, "Europe/Paris").say("add the dentist on 2027-01-20 at 9")
    Talk(alice, rows, "Asia/Tokyo").say("move the dentist to 2027-07-20")
    assert Talk(alice, rows).due("dentist") == at(date(2027, 7, 20), 9, "Europe/Paris")


def test_lists_are_of_the_days_of_the_person_s_zone(talk: Talk) -> None:
    """Each list has its day, and the answer names the weekday."""
    talk.say("add milk today, bread tomorrow, eggs on 2020-02-29 and sleep")
    today, tomorrow = (f"{talk.today() + timedelta(days):%A %Y-%m-%d}" for days in (0, 1))
    milk, bread = talk.named("milk", today), talk.named("bread", tomorrow)
    eggs = talk.named("eggs", "Saturday 2020-02-29")
    assert talk.say("what is due today?")["response"] == f"Due today: {milk}."
    assert talk.say("what is due tomorrow?")["response"] == f"Due tomorrow: {bread}."
    assert talk.say("what is overdue?")["response"] == f"Overdue: {eggs}."
    week = talk.say("what is due this week?")["response"]
    assert [name in week for name in (milk, bread, eggs)] == [True, not today.startswith("Sunday"), False]
    left = f"{eggs}, {milk}, {bread} and {talk.named('sleep')}"
    assert talk.say("tell me what is left")["response"] == f"Left to do: {left}."


def test_the_first_sentence_of_the_readme_works(talk: Talk) -> None:
    """It moves the task and then lists what is left."""
    talk.say("Add the dentist on Wednesday at 9")
    answer = talk.say("Move the dentist to Friday and tell me what is left")
    friday = weekday_after(talk.today(), 4)
    shown = talk.named("dentist", f"{friday:%A %Y-%m-%d} 09:00")
    assert answer["response"] == f"Moved {shown}. Left to do: {shown}."
    assert talk.due("dentist") == at(friday, 9, talk.zone)


CHAINS = (
    ("delete the dentist",),
    ("finish the dentist and delete it all the same",),
    ("move the dentist to Friday at 10",),
    ("clear the date of the dentist and describe the dentist as bring the card", "finish the dentist"),
    ("rename the dentist to doctor, then delete the doctor", "delete everything", "add bread and eggs tomorrow"),
    ("finish everything and delete the milk", "what is left?"),
)


@pytest.mark.parametrize("messages", CHAINS)
def test_each_undo_restores_the_rows(messages: tuple[str, ...], alice: Person, rows: Rows) -> None:
    """After each turn it leaves title, description, state and date as they were, and it can be undone itself."""
    talk = Talk(alice, rows, "Europe/Paris")
    talk.say('Add the dentist on 2027-01-20 at 9 with note: "ring twice"')
    talk.say("add buy milk and call mum on 2027-07-20")
    talk.say("finish the call")
    for message in messages:
        before = talk.tasks()
        changed = talk.say(message)["tool_calls"]
        after = talk.tasks()
        if {call["tool"] for call in changed} - {"list_tasks"}:
            for expected in (before, after, before, after):
                talk.say("oops, undo that")
                assert talk.tasks() == expected


def test_there_may_be_nothing_to_undo(alice: Person, rows: Rows) -> None:
    """Another conversation's turns are not this one's."""
    Talk(alice, rows).say("add milk")
    answer = Talk(alice, rows).say("undo that")
    assert (answer["response"], answer["tool_calls"]) == ("There is nothing to undo.", [])


def test_a_day_that_does_not_exist_is_reported(alice: Person, rows: Rows) -> None:
    """The answer has the tool's sentence, and the other wishes of the message are fulfilled."""
    answer = alice.say("add the dentist on 2027-02-29 at 9 and milk on 2027-02-28 at 9").json
    assert [call["outcome"] for call in answer["tool_calls"]] == ["error", "ok"]
    assert answer["response"].startswith("I could not add dentist: Invalid arguments: due: ")
    assert Talk(alice, rows).due("milk") == at(date(2027, 2, 28), 9, None)


def test_the_examples_work_one_after_another(alice: Person, rows: Rows) -> None:
    """A new user sends the printed curl line, and then each suggestion of the page. No answer is a question."""
    talk, examples = Talk(alice, rows), domain.examples
    for message in (examples.add_and_show, examples.add, examples.show, *examples.more):
        answer = talk.say(message)
        assert "?" not in answer["response"]
        assert answer["tool_calls"]
