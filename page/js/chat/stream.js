/** Read server-sent events from an answer, as they come or all at once. */

import { read } from "../api.js";

/** @typedef {{name: string, data: any, retry: number | null}} Event `retry` is in seconds */

/**
 * Yield each event of the answer. Raises Problem when the connection breaks off.
 * @param {Response} response
 * @returns {AsyncGenerator<Event>}
 */
export async function* readEvents(response) {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await read(() => reader.read());
    const frames = (rest + (value ?? "")).split("\n\n");
    rest = frames.pop() ?? "";
    yield* frames.map(parse).filter((event) => event !== null);
    if (done) return;
  }
}

/**
 * Return the event of a frame, or null for a comment and for the mark of the end.
 * @param {string} frame
 * @returns {Event | null}
 */
function parse(frame) {
  const fields = new Map(frame.split("\n").map(field));
  const data = fields.get("data");
  if (!data || data === "[DONE]") return null;
  const retry = fields.get("retry");
  return { name: fields.get("event") ?? "message", data: JSON.parse(data), retry: retry ? Number(retry) / 1000 : null };
}

/**
 * @param {string} line
 * @returns {[string, string]}
 */
function field(line) {
  const colon = line.indexOf(":");
  return [line.slice(0, colon), line.slice(colon + 1).trimStart()];
}
