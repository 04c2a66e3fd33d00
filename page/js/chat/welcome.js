/** Show a log without turns: a new conversation, or one that cannot be read. */

import { button, element } from "../dom.js";

/**
 * @param {string[]} suggestions
 * @param {(text: string) => void} send
 * @param {HTMLElement | null} below
 */
export function welcome(suggestions, send, below) {
  const items = suggestions.map((text) => element("li", {}, button(text, () => send(text), { dir: "auto" })));
  return element("div", { class: "welcome" },
    element("h2", {}, "What would you like to do?"),
    element("p", {}, "Write it as you would say it."),
    items.length > 0 && element("ul", { class: "suggestions", "aria-label": "Suggestions" }, items),
    below);
}

/**
 * Return the list of messages that were left before they had a conversation, or null if there are none.
 * @param {import("./outbox.js").Entry[]} entries
 * @param {(key: string) => void} open
 */
export function waiting(entries, open) {
  if (entries.length === 0) return null;
  const items = entries.map(({ key, body }) =>
    element("li", {}, button(JSON.parse(body).message, () => open(key), { class: "cut", dir: "auto" })));
  return element("section", { class: "notice", "aria-label": "Messages without an answer" },
    element("p", {}, items.length === 1 ? "This message has no answer yet:" : "These messages have no answer yet:"),
    element("ul", { class: "waiting-list" }, items));
}

/** @param {() => void} begin */
export function gone(begin) {
  return notice("This conversation is gone.", button("New conversation", begin, { class: "primary" }));
}

/**
 * @param {import("../api.js").Problem} error
 * @param {() => void} retry
 */
export function unread(error, retry) {
  const title = error.status ? error.problem.title : "The conversation cannot be read: the server does not answer.";
  return notice(title, button("Retry", retry, { class: "primary" }));
}

/**
 * @param {string} title
 * @param {HTMLElement} way
 */
function notice(title, way) {
  return element("div", { class: "notice bad", role: "alert" },
    element("p", { class: "title" }, title), element("div", { class: "buttons" }, way));
}
