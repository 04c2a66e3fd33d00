/** List the person's conversations. A first version: without renaming and deleting. */

import { button, element } from "../dom.js";

/**
 * @param {HTMLElement} root
 * @param {{api: import("../api.js").Api, userId: string, open: (id: string | null) => void, announce: (text: string) => void}} needs
 */
export function mountConversations(root, { api, open }) {
  const list = element("ul", { class: "conversations" });
  /** @type {string | null} */
  let selected = null;
  root.replaceChildren(button("New conversation", () => open(null), { class: "new" }), list);

  function mark() {
    for (const node of list.querySelectorAll("button")) {
      if (node.dataset.id === selected) node.setAttribute("aria-current", "page");
      else node.removeAttribute("aria-current");
    }
  }

  async function refresh() {
    const page = await api.json("GET", `${api.person}/conversations?limit=50`).catch(() => null);
    if (!page) return;
    list.replaceChildren(...page.conversations.map((/** @type {{id: string, title: string}} */ each) =>
      element("li", {}, button(each.title, () => open(each.id), { "data-id": each.id, dir: "auto" }))));
    mark();
  }

  refresh();
  return { refresh, select: (/** @type {string | null} */ id) => { selected = id; mark(); } };
}
