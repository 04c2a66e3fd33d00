/** Say in a sentence or two why a request failed, and what the person can do. */

import { Problem } from "../api.js";

/** @type {Record<number, string>} */
const SENTENCES = {
  0: "The server does not answer. Check your connection, then try again.",
  401: "Your sign-in has ended. Reload the page.",
  403: "This belongs to another person.",
  404: "It is not there any more.",
  409: "A turn is running in this conversation. Try again when it has ended.",
  503: "The server cannot reach its database. Nothing was changed. Try again in a moment.",
  504: "It took too long. Try again: it goes on where it stopped.",
};

/**
 * @param {unknown} error
 * @returns {string}
 */
export function explain(error) {
  if (error instanceof TypeError) return SENTENCES[0];
  if (!(error instanceof Problem)) return String(error);
  const { status, problem, retryAfter } = error;
  if (status === 429) return `Too many requests. Try again in ${seconds(retryAfter)}.`;
  return SENTENCES[status] ?? problem.detail ?? problem.title;
}

/** @param {number | null} number */
function seconds(number) {
  const rounded = Math.max(1, Math.ceil(number ?? 1));
  return rounded === 1 ? "a second" : `${rounded} seconds`;
}
