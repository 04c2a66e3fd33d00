/** Start the page and connect its parts. */

import { Api } from "./api.js";
import { Chat } from "./chat/chat.js";
import { Composer } from "./chat/composer.js";
import { Draft } from "./chat/draft.js";
import { loadDomain, readConfig } from "./config.js";
import { button, byId, element } from "./dom.js";
import { Drawers } from "./drawers.js";
import { placeOf, writePlace } from "./place.js";
import { mountAccount } from "./side/account.js";
import { mountConversations } from "./side/conversations.js";
import { mountPanel } from "./side/panel.js";
import { startSession } from "./side/session.js";
import { onTold } from "./side/tabs.js";

/** @param {string} text */
function announce(text) {
  byId("status").textContent = text;
}

async function start() {
  const config = await readConfig();
  document.title = byId("title").textContent = config.title;
  const session = await startSession(config, byId("sign-in"));
  const api = new Api(config, session);
  const domain = await loadDomain(config);
  byId("app").hidden = false;
  nameThePanel(domain);
  const drawers = new Drawers();
  const chat = new Chat({
    api,
    domain,
    announce,
    log: byId("log"),
    scroller: byId("scroller"),
    toEnd: byId("to-end"),
    onMove: (place, how) => { writePlace(place, how); select(place); },
    onGo: (place) => go(place),
    onCall: (call) => panel.called(call),
    onEnded: (turn) => { conversations.refresh(); panel.turnEnded(turn.calls); },
    onChange: () => composer.setRunning(chat.live !== undefined),
    edit: (text) => composer.setText(text),
    focus: () => composer.focus(),
  });
  const composer = new Composer({
    form: /** @type {HTMLFormElement} */ (byId("form")),
    box: /** @type {HTMLTextAreaElement} */ (byId("message")),
    send: /** @type {HTMLButtonElement} */ (byId("send")),
    stop: /** @type {HTMLButtonElement} */ (byId("stop")),
    hint: byId("hint"),
    draft: new Draft(session.userId),
    announce,
    onSend: (text) => chat.send(text),
    onStop: () => chat.stop(),
    sent: () => chat.turns.list.map((turn) => turn.message),
  });
  const panel = mountPanel(byId("panel"), { api, userId: session.userId, domain });
  const conversations = mountConversations(byId("conversation-list"), {
    api,
    userId: session.userId,
    announce,
    open: (/** @type {string | null} */ id) => { drawers.show(null); go({ conversation: id, message: null }); composer.focus(); },
  });
  mountAccount(byId("account"), { api, session });

  /** @param {import("./chat/chat.js").Place} place */
  function go(place) {
    if (writePlace(place, "pushState")) open(place);
  }

  /** @param {import("./chat/chat.js").Place} place */
  function open(place) {
    conversations.select(place.conversation);
    chat.open(place);
  }

  /** @param {import("./chat/chat.js").Place} place */
  function select(place) {
    conversations.select(place.conversation);
    if (place.conversation) conversations.refresh();
  }

  onTold((change) => { if (change === "conversations") chat.look(); }); // it may be gone
  addEventListener("popstate", () => open(placeOf(location.hash)));
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing && !drawers.close() && !document.querySelector("dialog[open]")) chat.stop();
  });
  chat.goOnWithAll();
  open(placeOf(location.hash));
  composer.focus();
}

/** @param {import("./config.js").Domain} domain */
function nameThePanel(domain) {
  const { title, render } = domain;
  byId("panel").hidden = byId("toggle-panel").hidden = !render;
  byId("panel").setAttribute("aria-label", title ?? "");
  byId("toggle-panel").textContent = title ?? "";
}

/** Say that the page cannot start, and offer to try again. */
function fail() {
  byId("sign-in").replaceChildren(element("div", { class: "notice bad", role: "alert" },
    element("p", { class: "title" }, "The page cannot start: the server does not answer."),
    element("div", { class: "buttons" }, button("Retry", () => location.reload(), { class: "primary" }))));
}

start().catch((error) => {
  console.error(error);
  fail();
});
