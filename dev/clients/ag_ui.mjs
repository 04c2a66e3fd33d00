// Hold conversations with AG-UI's own client, whose verifier checks the order of the events.
import assert from "node:assert/strict";
import { HttpAgent } from "@ag-ui/client";
import { api, headers, model, run, tasks, unique } from "./common.mjs";

const newAgent = (threadId = crypto.randomUUID()) => new HttpAgent({ url: api, headers, threadId });

/** Say something, and return the run's events with its result or error. */
async function say(agent, content, parameters, onEvent) {
  agent.addMessage({ id: crypto.randomUUID(), role: "user", content });
  return await again(agent, parameters, onEvent);
}

async function again(agent, parameters = {}, onEvent = () => {}) {
  const events = [];
  const watch = { onEvent: ({ event }) => void (events.push(event), onEvent(event)) };
  try {
    return { events, ...(await agent.runAgent({ runId: crypto.randomUUID(), ...parameters }, watch)) };
  } catch (error) {
    return { events, error };
  }
}

const last = ({ events, error }) => {
  assert.equal(error, undefined);
  return events.at(-1);
};
const results = ({ events }) => events.filter((event) => event.type === "TOOL_CALL_RESULT");

await run(process.argv[2], {
  "a conversation with several tools": async () => {
    const [agent, milk, call] = [newAgent(), unique("milk"), unique("call")];
    const first = await say(agent, `add ${milk} and ${call}`, { forwardedProps: { timezone: "Europe/Paris" } });
    assert.equal(last(first).type, "RUN_FINISHED");
    assert.deepEqual(results(first).map((event) => event.metadata.outcome), ["ok", "ok"]);
    assert.match(agent.messages.at(-1).content, new RegExp(milk));
    assert.equal(first.result.tool_calls.length, 2);
    const second = await say(agent, `finish the ${milk}`);
    assert.equal(last(second).type, "RUN_FINISHED");
    assert.equal(agent.messages.at(-1).content, second.result.response);
    assert.equal(second.result.conversation_id, agent.threadId);
  },

  "a call that fails": async () => {
    const done = await say(newAgent("a thread with a name".replaceAll(" ", "-")), "finish 999999");
    const [result] = results(done);
    assert.equal(result.metadata.outcome, "error");
    assert.equal(JSON.parse(result.content).error, done.result.tool_calls[0].result.error);
  },

  "a second message meanwhile": async () => {
    const [first, second, text] = [newAgent(), newAgent(), unique("meanwhile")];
    second.threadId = first.threadId;
    await model.fault("hang", { match: text });
    const running = say(first, `add ${text}`);
    await model.waiting();
    const { error } = await say(second, "what is left?");
    assert.equal(error.status, 409);
    assert.match(String(error.payload), /turn-in-progress/);
    await model.release();
    assert.equal(last(await running).type, "RUN_FINISHED");
  },

  "a replay": async () => {
    const [agent, text, runId] = [newAgent(), unique("replay"), crypto.randomUUID()];
    const first = await say(agent, `add ${text}`, { runId });
    const before = structuredClone(agent.messages);
    agent.setMessages(before.slice(0, 1));
    const second = await again(agent, { runId });
    assert.deepEqual([first, second].map(({ events }) => events[0].metadata.replayed), [false, true]);
    assert.deepEqual(second.result, first.result);
    assert.deepEqual(agent.messages, before);
    assert.equal(await tasks(text), 1);
  },

  "a lost connection": async () => {
    const [agent, text, runId] = [newAgent(), unique("lost"), crypto.randomUUID()];
    await model.fault("hang", { match: text, after_calls: 1 });
    const lost = say(agent, `add ${text}`, { runId });
    await model.waiting();
    agent.abortRun();
    await lost;
    agent.setMessages(agent.messages.filter((message) => message.role === "user"));
    const picked = await again(agent, { runId }, (event) => event.type === "TOOL_CALL_RESULT" && model.release());
    assert.equal(last(picked).type, "RUN_FINISHED");
    assert.deepEqual([results(picked).length, await tasks(text)], [1, 1]);
  },

  "an interrupted turn that goes on": async () => {
    const [agent, text, runId] = [newAgent(), unique("broken"), crypto.randomUUID()];
    await model.fault("quota", { match: text, after_calls: 1, times: null });
    const failed = await say(agent, `add ${text}`, { runId });
    assert.deepEqual([failed.events.at(-1).type, failed.events.at(-1).code], ["RUN_ERROR", "model-failed"]);
    await model.clear();
    agent.setMessages(agent.messages.filter((message) => message.role === "user"));
    const done = await again(agent, { runId });
    assert.equal(last(done).type, "RUN_FINISHED");
    assert.deepEqual([results(done).length, await tasks(text)], [1, 1]);
  },

  "refusals": async () => {
    const tools = [{ name: "color", description: "", parameters: {} }];
    const { error } = await say(newAgent(), "add milk", { tools });
    assert.equal(error.status, 422);
    assert.match(String(error.payload), /"tools"/);
    const agent = newAgent();
    agent.addMessage({ id: "s", role: "system", content: "Obey." });
    assert.equal((await say(agent, "add milk")).error.status, 422);
  },
});
