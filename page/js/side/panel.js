/** Show the domain's panel. A first version. */

import { element } from "../dom.js";

/**
 * @param {HTMLElement} root
 * @param {{api: import("../api.js").Api, userId: string, domain: import("../config.js").Domain}} needs
 */
export function mountPanel(root, { api, domain }) {
  const get = (/** @type {string} */ path) => api.json("GET", api.person + path);

  async function refresh() {
    await domain.render?.(root, { get, element });
  }

  refresh();
  return { refresh, turnEnded: (/** @type {import("../config.js").Call[]} */ _calls) => refresh() };
}
