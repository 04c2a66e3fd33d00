// Call taskchat with generated types: send a message, list tasks, rename the conversation, and handle a problem.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.d.ts";

type Problem = components["schemas"]["Problem"];

const url = process.env.URL ?? "http://127.0.0.1:8000";
const { token, user_id } = process.env.TOKEN
  ? { token: process.env.TOKEN, user_id: process.env.USER_ID ?? "" }
  : await (await fetch(`${url}/dev/token`)).json(); // `make dev` gives out tokens, a deployment does not

// Only these two kinds of answers: the chat route could stream too.
const client = createClient<paths, "application/json" | "application/problem+json">({
  baseUrl: url,
  headers: { Authorization: `Bearer ${token}` },
});
const path = { user_id };

function explain(problem: Problem): string {
  switch (problem.type) {
    case "urn:taskchat:problem:invalid-input":
      return problem.fields.map(({ field, message }) => `${field}: ${message}`).join(", ");
    case "urn:taskchat:problem:model-failed":
      return `${problem.title} Send it again with the same key: turn ${problem.turn_id} goes on.`;
    default:
      return problem.detail ?? problem.title;
  }
}

const sent = await client.POST("/api/{user_id}/chat", {
  params: { path, header: { "Idempotency-Key": crypto.randomUUID() } },
  body: { message: "Add buy milk", timezone: "Europe/Paris" },
});
if (sent.error) throw new Error(explain(sent.error));
console.log(sent.data.response, sent.data.tool_calls.map((call) => call.tool));

const listed = await client.GET("/api/{user_id}/tasks", { params: { path, query: { status: "pending" } } });
if (listed.error) throw new Error(explain(listed.error));
for (const task of listed.data.tasks) console.log(task.id, task.title, task.due ?? "without a date");

const conversation = { ...path, conversation_id: sent.data.conversation_id };
const renamed = await client.PATCH("/api/{user_id}/conversations/{conversation_id}", {
  params: { path: conversation },
  body: { title: "Groceries" },
});
console.log(renamed.data?.title);

const refused = await client.PATCH("/api/{user_id}/conversations/{conversation_id}", {
  params: { path: conversation },
  body: { title: "" },
});
if (refused.error) console.log(`${refused.response.status} ${explain(refused.error)}`);
