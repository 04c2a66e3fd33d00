/** List the person's conversations by their last activity. They are the server's, so every device shows the same. */

import { Problem } from "../api.js";
import { element } from "../dom.js";
import { ask, field } from "./dialogs.js";
import { explain } from "./explain.js";
import { oneAtATime, onReturn, onTold, tell } from "./tabs.js";

const PAGE = 30;
const MOST = 100; // rows that the server puts on a page at most
const LONGEST_TITLE = 200;

/** @typedef {import("../api.js").Api} Api */
/** @typedef {{id: string, title: string, updated_at: string, running: boolean}} Conversation */

/**
 * Fill `root`, a part of a navigation. `open(id)` is called with the conversation to show, or null for a new one.
 * @param {HTMLElement} root
 * @param {{api: Api, userId: string, open: (id: string | null) => void, announce: (text: string) => void}} parts
 */
export function mountConversations(root, { api, userId, open, announce }) {
  const path = `/api/${encodeURIComponent(userId)}/conversations`;
  const fresh = element("button", { type: "button", class: "primary new-conversation" }, "New conversation");
  const list = element("ul", { class: "conversations" });
  const more = element("button", { type: "button", hidden: "" }, "Show more");
  const note = element("p", { class: "note" }, "Loading…");
  root.replaceChildren(fresh, note, list, more);

  /** @type {string | null} */
  let current = null;
  let shown = PAGE;
  /** @type {Conversation[]} */
  let conversations = [];

  async function load() {
    try {
      const found = await read(api, path, shown);
      conversations = found.conversations;
      more.hidden = found.isWhole;
      note.textContent = conversations.length ? "" : "No conversation yet.";
    } catch (error) {
      note.textContent = explain(error);
    }
    note.hidden = !note.textContent;
    show();
  }

  function show() {
    const active = document.activeElement;
    const focused = active instanceof HTMLElement && list.contains(active) ? active.dataset.focus : undefined;
    list.replaceChildren(...conversations.map(item));
    if (focused) focus(focused);
  }

  /** @param {string} name */
  function focus(name) {
    /** @type {NodeListOf<HTMLElement>} */
    const focusable = list.querySelectorAll("[data-focus]");
    [...focusable].find((each) => each.dataset.focus === name)?.focus();
  }

  /** @param {Conversation} conversation */
  function item(conversation) {
    const { id, title, running, updated_at: updatedAt } = conversation;
    const link = element("a", { href: `#${id}`, class: "conversation", "data-focus": `open ${id}` });
    link.append(
      element("bdi", { class: "title" }, title),
      element("span", { class: "fact" }, running ? "Working…" : element("time", { datetime: updatedAt }, when(updatedAt))),
    );
    if (id === current) link.setAttribute("aria-current", "page");
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return; // the browser opens another tab
      event.preventDefault();
      open(id);
    });
    return element(
      "li",
      { class: id === current ? "current" : "" },
      link,
      action("Rename", conversation, () => rename(conversation)),
      action("Delete", conversation, () => remove(conversation)),
    );
  }

  /** @param {Conversation} conversation */
  async function rename(conversation) {
    const [label, input] = field("Title", { value: conversation.title, maxlength: LONGEST_TITLE, required: "", dir: "auto" });
    input.addEventListener("input", () => input.setCustomValidity(input.value.trim() ? "" : "A title has a letter or a number."));
    const work = () => api.json("PATCH", `${path}/${conversation.id}`, { body: { title: input.value.trim() } });
    const isRenamed = await ask("Rename the conversation", [label, input], { action: "Rename", work });
    focus(`Rename ${conversation.id}`); // the list may have been drawn anew behind the dialog
    if (isRenamed) {
      announce("Renamed.");
      tell("conversations");
      await refresh();
    }
  }

  /** @param {Conversation} conversation */
  async function remove({ id, title }) {
    const text = ["Delete ", element("bdi", {}, `“${title}”`), "? What was done in it stays done."];
    const work = () => removeOnServer(id);
    if (await ask("Delete the conversation", [element("p", {}, ...text)], { action: "Delete", danger: true, work })) {
      announce("Deleted.");
      tell("conversations");
      if (id === current) open(null);
      conversations = conversations.filter((each) => each.id !== id);
      show();
      fresh.focus();
      await refresh();
    } else focus(`Delete ${id}`);
  }

  /** @param {string} id */
  async function removeOnServer(id) {
    try {
      await api.json("DELETE", `${path}/${id}`);
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 404) throw error; // 404: another device was faster
    }
  }

  const refresh = oneAtATime(load);
  fresh.addEventListener("click", () => open(null));
  more.addEventListener("click", () => {
    shown += PAGE;
    refresh();
  });
  onReturn(refresh);
  onTold(refresh);
  refresh();

  return {
    refresh,
    /**
     * Mark a conversation as the one that is shown, or none.
     * @param {string | null} id
     */
    select(id) {
      current = id;
      show();
      if (id && !conversations.some((each) => each.id === id)) refresh();
    },
  };
}

/**
 * Return the first `count` conversations, and whether they are all.
 * @param {Api} api
 * @param {string} path
 * @param {number} count
 */
async function read(api, path, count) {
  /** @type {Conversation[]} */
  const conversations = [];
  /** @type {string | null} */
  let cursor = null;
  do {
    const query = new URLSearchParams({ limit: String(Math.min(MOST, count - conversations.length)) });
    if (cursor) query.set("cursor", cursor);
    const page = await api.json("GET", `${path}?${query}`);
    conversations.push(...page.conversations);
    cursor = page.next_cursor;
  } while (cursor && conversations.length < count);
  return { conversations, isWhole: !cursor };
}

/**
 * @param {string} word
 * @param {Conversation} conversation
 * @param {() => void} work
 */
function action(word, { id, title }, work) {
  const button = element("button", {
    type: "button",
    class: `icon ${word.toLowerCase()}`,
    "aria-label": `${word} ${title}`,
    title: word,
    "data-focus": `${word} ${id}`,
  });
  button.append(element("span", { "aria-hidden": "true" }, word === "Rename" ? "✎" : "✕"));
  button.addEventListener("click", work);
  return button;
}

/** @param {string} text */
function when(text) {
  const time = new Date(text);
  const isToday = time.toDateString() === new Date().toDateString();
  /** @type {Intl.DateTimeFormatOptions} */
  const form = isToday ? { timeStyle: "short" } : { day: "numeric", month: "short" };
  return new Intl.DateTimeFormat(undefined, form).format(time);
}
