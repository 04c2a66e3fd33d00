// The parts of the page that need no browser.
import assert from "node:assert/strict";
import { test } from "node:test";
import { explain } from "../page/js/chat/problems.js";
import { readEvents } from "../page/js/chat/stream.js";
import { Turn } from "../page/js/chat/turn.js";
import { Turns } from "../page/js/chat/turns.js";
import { placeOf } from "../page/js/place.js";

const CALL = { call_id: "1", tool: "add_task", arguments: { title: "milk" } };
const DONE = { ...CALL, outcome: "ok", result: { title: "milk" }, duration_ms: 1 };

async function eventsOf(chunks) {
  const body = new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
  const events = [];
  for await (const event of readEvents(new Response(body))) events.push(event);
  return events;
}

const stored = (id, fields = {}) => ({
  turn_id: id, status: "done", message: `message ${id}`, response: "done", tool_calls: [], created_at: "2026-11-22T09:00:00Z", ...fields,
});
const waiting = (fields) => new Turn({ key: "key", message: "and this", ...fields });
const ids = (turns) => turns.list.map((turn) => turn.id ?? turn.message);

test("events are read wherever the bytes are cut", async () => {
  const text = ": wait\n\nevent: text\nid: 1\ndata: {\"message\":0,\"text\":\"🥛 é\"}\n\n"
    + "event: failed\nid: 2\nretry: 3000\ndata: {\"status\":503}\n\ndata: [DONE]\n\n";
  const bytes = new TextEncoder().encode(text);
  const expected = [
    { name: "text", data: { message: 0, text: "🥛 é" }, retry: null },
    { name: "failed", data: { status: 503 }, retry: 3 },
  ];
  for (let cut = 0; cut <= bytes.length; cut += 1) {
    assert.deepEqual(await eventsOf([bytes.slice(0, cut), bytes.slice(cut)]), expected);
  }
});

test("an event that is cut off is no event", async () => {
  assert.deepEqual(await eventsOf([new TextEncoder().encode("event: text\ndata: {\"message\":0}")]), []);
});

test("a replay begins the list anew", () => {
  const turn = waiting({});
  for (let time = 0; time < 2; time += 1) {
    turn.apply({ name: "accepted", data: { conversation_id: "c", turn_id: "t" }, retry: null });
    turn.apply({ name: "tool_started", data: CALL, retry: null });
    turn.apply({ name: "tool_finished", data: DONE, retry: null });
    turn.apply({ name: "text", data: { message: 0, text: "Added " }, retry: null });
    turn.apply({ name: "text", data: { message: 0, text: "milk" }, retry: null });
  }
  assert.deepEqual(turn.parts, [{ call: DONE }, { message: 0, text: "Added milk" }]);
});

test("a failure keeps the text and the calls that are recorded", () => {
  const turn = waiting({});
  turn.apply({ name: "accepted", data: { conversation_id: "c", turn_id: "t" }, retry: null });
  turn.apply({ name: "tool_finished", data: DONE, retry: null });
  turn.apply({ name: "tool_started", data: { ...CALL, call_id: "2" }, retry: null });
  turn.apply({ name: "text", data: { message: 0, text: "Ad" }, retry: null });
  turn.apply({ name: "failed", data: { status: 502, title: "The model failed.", tool_calls: [DONE] }, retry: 2 });
  assert.deepEqual(turn.parts, [{ call: DONE }, { message: 0, text: "Ad" }]);
  assert.equal(turn.state, "failed");
  assert.ok(explain(turn).includes("The step above was done and stays done."));
});

test("an error claims only what is known", () => {
  const linesOf = (id, status, problem) => {
    const turn = waiting({ id });
    turn.fail(status, { title: "No.", ...problem }, null);
    return explain(turn).join(" ");
  };
  assert.match(linesOf(null, 429, {}), /Nothing was done/);
  assert.match(linesOf("t", 502, { tool_calls: [] }), /Nothing was done/);
  assert.doesNotMatch(linesOf("t", 503, {}), /Nothing was done/);
  assert.doesNotMatch(linesOf(null, 0, {}), /Nothing was done/);
});

test("a message on its way keeps its place among the turns of the history", () => {
  const turns = new Turns();
  turns.add(waiting({ after: "b" }));
  turns.merge("c", [stored("a"), stored("b"), stored("d")], "newest");
  assert.deepEqual(ids(turns), ["a", "b", "and this", "d"]);
  turns.merge("c", [stored("1"), stored("2")], "older");
  assert.deepEqual(ids(turns), ["1", "2", "a", "b", "and this", "d"]);
});

test("the turn of a message is not shown beside the message", () => {
  const turns = new Turns();
  const message = waiting({ after: "a" });
  turns.add(message);
  turns.merge("c", [stored("a"), stored("b", { message: "and this", status: "running", response: null })], "newest");
  assert.deepEqual(turns.list.map((turn) => turn.message), ["message a", "and this"]);
  assert.equal(message.id, "b");
});

test("the same words sent before are another message", () => {
  const turns = new Turns();
  turns.add(waiting({ after: "b" }));
  turns.merge("c", [stored("a"), stored("b", { message: "and this" })], "newest");
  assert.deepEqual(turns.list.map((turn) => turn.key), [null, null, "key"]);
});

test("a live turn is left to its events, and another one follows the history", () => {
  const turns = new Turns();
  const live = waiting({ id: "a", state: "running", isLive: true });
  turns.add(live);
  turns.merge("c", [stored("a")], "newest");
  assert.equal(live.state, "running");
  live.isLive = false;
  turns.merge("c", [stored("a")], "newest");
  assert.equal(live.state, "done");
});

test("an address names a conversation, a message or nothing", () => {
  assert.deepEqual(placeOf("#0b5e-1"), { conversation: "0b5e-1", message: null });
  assert.deepEqual(placeOf("#message-k1"), { conversation: null, message: "k1" });
  for (const hash of ["", "#", "#../x", "#message-", "#a b"]) {
    assert.deepEqual(placeOf(hash), { conversation: null, message: null });
  }
});
