/** Say in plain words what an error means, what was done, and what to do. */

import { UNREACHABLE } from "../api.js";

const RETRYABLE = new Set([UNREACHABLE, 401, 409, 429, 500, 502, 503, 504]);

const ADVICE_RETRY = "Retry goes on from here; nothing is done twice.";

/** @type {Record<number, string>} what the person reads in place of a title for developers */
const TITLES = {
  401: "You are not signed in any more.",
  404: "This conversation is gone.",
  413: "The message is too long.",
  429: "You have reached a limit.",
};

/** @type {Record<number, string>} */
const ADVICE = {
  [UNREACHABLE]: "Your message is kept here. Nothing is lost and nothing happens twice.",
  401: "Sign in again, then retry.",
  403: "Sign in as the person to whom this conversation belongs.",
  404: "You can send the message in a new one.",
  409: "Your message is sent when that turn has ended.",
  413: "Send a shorter message.",
  422: "Change the message and send it again.",
  429: "Your message is kept here. Retry it when the waiting time is over.",
  500: ADVICE_RETRY,
  502: ADVICE_RETRY,
  503: ADVICE_RETRY,
  504: ADVICE_RETRY,
};

/**
 * The same request with the same key may help.
 * @param {import("./turn.js").Failure} failure
 */
export function isRetryable({ status }) {
  return RETRYABLE.has(status);
}

/**
 * The page tries again by itself when the waiting time is over.
 * @param {import("./turn.js").Failure} failure
 */
export function isAutomatic({ status }) {
  return status === UNREACHABLE || status === 409;
}

/**
 * Return the lines of an error: what happened, what was done, what to do.
 * @param {import("./turn.js").Turn} turn
 * @returns {string[]}
 */
export function explain(turn) {
  const { status, problem } = /** @type {import("./turn.js").Failure} */ (turn.failure);
  const fields = (problem.fields ?? []).map((/** @type {{field: string, message: string}} */ each) =>
    `${each.field}: ${each.message}`);
  const first = [TITLES[status] ?? problem.title, problem.detail].filter(Boolean).join(" ");
  return [first, ...fields, done(turn), ADVICE[status] ?? "Try again later."].filter(Boolean);
}

/**
 * Return what the turn has done so far, as far as it is known.
 * @param {import("./turn.js").Turn} turn
 */
function done({ calls, id, failure }) {
  const count = calls.filter((call) => call.outcome === "ok").length;
  if (count === 1) return "The step above was done and stays done.";
  if (count > 1) return `The ${count} steps above were done and stay done.`;
  const isKnown = id ? failure?.problem.tool_calls : failure?.status !== UNREACHABLE;
  return isKnown ? "Nothing was done." : "";
}
