/** Let the person take their data along, erase it, and sign out. */

import { Problem } from "../api.js";
import { element } from "../dom.js";
import { ask, field } from "./dialogs.js";
import { explain } from "./explain.js";
import { leave } from "./session.js";
import { onTold, tell } from "./tabs.js";

const WORD = "erase";
const MOST_REQUESTS = 60; // an erasure of very much takes several requests

/** @typedef {import("../api.js").Api} Api */
/** @typedef {import("../api.js").Session} Session */

/**
 * Fill `root` with the buttons, and with a line that says what was done.
 * @param {HTMLElement} root
 * @param {{api: Api, session: Session}} parts
 */
export function mountAccount(root, { api, session }) {
  const line = element("p", { class: "note", role: "status" });
  const say = (/** @type {string} */ text) => { line.textContent = text; };
  const exporting = button("Export my data", async () => {
    say("Exporting…");
    try {
      save(await exportAll(api, session.userId), "taskchat-export.json");
      say("Exported: the browser saves the file.");
    } catch (error) {
      say(`The export failed. ${explain(error)}`);
    }
  });
  const erasing = button("Erase my data", () => erase(api, session));
  root.replaceChildren(line, exporting, erasing); // the area grows upwards, so no button moves under the pointer
  if (session.signOut) root.append(button("Sign out", () => signOut(session, say)));
  onTold((change) => {
    if (change === "erased") leave(session.userId); // by another tab: this one still shows what is gone
  });
  if (session.name) root.prepend(element("p", { class: "note" }, element("bdi", {}, session.name)));
}

/**
 * @param {string} text
 * @param {() => Promise<void>} work
 */
function button(text, work) {
  const made = element("button", { type: "button" }, text);
  made.addEventListener("click", async () => {
    if (made.getAttribute("aria-disabled") === "true") return;
    made.setAttribute("aria-disabled", "true"); // `disabled` would take the focus away
    try {
      await work();
    } finally {
      made.removeAttribute("aria-disabled");
    }
  });
  return made;
}

/**
 * Return all pages of the export, joined into one document like a page.
 * @param {Api} api
 * @param {string} userId
 */
export async function exportAll(api, userId) {
  /** @type {Record<string, any> | null} */
  let whole = null;
  /** @type {string | null} */
  let cursor = null;
  do {
    const query = cursor ? `?${new URLSearchParams({ cursor })}` : "";
    const page = await api.json("GET", `/api/${encodeURIComponent(userId)}/export${query}`);
    cursor = page.next_cursor;
    const { tables } = (whole ??= { ...page, tables: {}, next_cursor: null });
    for (const [table, rows] of Object.entries(page.tables)) tables[table] = [...(tables[table] ?? []), ...rows];
  } while (cursor);
  return whole;
}

/**
 * Let the browser save `content` as a file.
 * @param {unknown} content
 * @param {string} name
 */
function save(content, name) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  const link = element("a", { href: url, download: name, hidden: "" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser has begun to read it by then
}

/**
 * @param {Api} api
 * @param {Session} session
 */
async function erase(api, session) {
  const text = "This deletes all your conversations and everything else that is kept of you here. It cannot be undone.";
  const stays = session.signOut ? "Your account stays: you can sign in again." : "";
  const [label, input] = field(`Type “${WORD}” to confirm`, { autocomplete: "off", autocapitalize: "none", required: "", pattern: ` *${WORD} *` });
  const content = [element("p", {}, text, " ", stays), label, input];
  const work = () => eraseAll(api, session.userId);
  if (await ask("Erase my data", content, { action: "Erase everything", danger: true, work })) {
    tell("erased");
    await leave(session.userId);
  }
}

/**
 * Send the request until nothing is left: 504 says that there was too much for one.
 * @param {Api} api
 * @param {string} userId
 * @returns {Promise<void>}
 */
async function eraseAll(api, userId) {
  for (let request = 1; ; request++) {
    try {
      return await api.json("DELETE", `/api/${encodeURIComponent(userId)}`, { headers: { Confirm: WORD } });
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 504 || request === MOST_REQUESTS) throw error;
    }
  }
}

/**
 * @param {Session} session
 * @param {(text: string) => void} say
 */
async function signOut(session, say) {
  try {
    await session.signOut?.();
  } catch (error) {
    say(`You are still signed in. ${explain(error)}`);
  }
}
