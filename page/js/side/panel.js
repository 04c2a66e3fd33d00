/** Host the panel that the domain's module draws, and keep it true: after a turn, and after changes from elsewhere. */

import { element } from "../dom.js";
import { explain } from "./explain.js";
import { oneAtATime, onReturn, onTold, tell } from "./tabs.js";

const POLL_MS = 60_000; // an MCP client or another device tells nobody

/** @typedef {import("../config.js").Call} Call */

/**
 * Fill `root`, a region. `domain` is the domain's module: without `render` in it the region stays hidden.
 * @param {HTMLElement} root
 * @param {{api: import("../api.js").Api, userId: string, domain: import("../config.js").Domain}} parts
 */
export function mountPanel(root, { api, userId, domain }) {
  const { render } = domain;
  if (!render) {
    root.hidden = true;
    return { refresh: async () => {}, called: () => {}, turnEnded: async () => {} };
  }
  const concerns = domain.concerns ?? (() => true);
  const heading = element("h2", { id: "panel-heading" }, domain.title ?? "Panel");
  const note = element("p", { class: "note", role: "status", hidden: "" });
  const body = element("div", { class: "panel-body" });
  root.setAttribute("aria-labelledby", heading.id);
  root.replaceChildren(heading, note, body);
  root.hidden = false;

  const person = `/api/${encodeURIComponent(userId)}`;
  /** @param {string} path */
  const get = (path) => api.json("GET", `${person}${path}`);

  const refresh = oneAtATime(async () => {
    try {
      await render(body, { get, element });
      note.hidden = true;
    } catch (error) {
      note.textContent = explain(error); // what was shown before stays
      note.hidden = false;
    }
  });
  onReturn(refresh);
  onTold(refresh);
  setInterval(() => {
    if (!document.hidden) refresh();
  }, POLL_MS);
  refresh();

  return {
    refresh,
    /**
     * Show the effect of one call at once, while its turn goes on.
     * @param {Call} call
     */
    called(call) {
      if (concerns(call)) refresh();
    },
    /** @param {Call[]} toolCalls */
    turnEnded(toolCalls = []) {
      tell(toolCalls.some((call) => concerns(call)) ? "turn with changes" : "turn");
      return refresh();
    },
  };
}
