// Share the scripts' steps: the server, the stand-in model's controls, and the person's tasks.
import assert from "node:assert/strict";

const { TASKCHAT_PATH, TASKCHAT_TOKEN, MODEL_CONTROL } = process.env;
export const api = `${TASKCHAT_PATH}/chat`;
export const headers = { Authorization: `Bearer ${TASKCHAT_TOKEN}` };

/** Return how many tasks have this title. */
export async function tasks(title) {
  const response = await fetch(`${TASKCHAT_PATH}/tasks?status=all&limit=100`, { headers });
  assert.equal(response.status, 200);
  return (await response.json()).tasks.filter((task) => task.title === title).length;
}

/** Control the stand-in model: docs/stand-in-model.md. */
export const model = {
  fault: (fault, parameters) => control("POST", "faults", { fault, ...parameters }),
  clear: () => control("DELETE", "faults"),
  waiting: () => control("GET", "waiting?at_least=1"),
  release: () => control("POST", "release"),
};

async function control(method, path, body) {
  const response = await fetch(`${MODEL_CONTROL}/${path}`, { method, body: body && JSON.stringify(body) });
  assert.ok(response.ok, await response.text());
}

/** Return a text that no other run of a script uses. */
export const unique = (text) => `${text} ${crypto.randomUUID().slice(0, 8)}`;

/** Do the named steps in their order, and print what was done. */
export async function run(client, steps) {
  for (const [name, step] of Object.entries(steps)) {
    try {
      await step();
    } catch (error) {
      console.error(`${client}: ${name}`);
      throw error;
    }
  }
  console.log(`${client} on Node.js ${process.version}: ${Object.keys(steps).join(", ")}`);
}
