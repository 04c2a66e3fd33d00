/** Show the areas beside the chat: always on a wide window, one at a time over the chat on a narrow one. */

import { byId } from "./dom.js";

const WIDE = { conversations: "(min-width: 48rem)", panel: "(min-width: 72rem)" };

/** @typedef {keyof typeof WIDE} Name */

export class Drawers {
  constructor() {
    /** @type {Name | null} */
    this.open = null;
    for (const name of names()) {
      byId(`toggle-${name}`).addEventListener("click", () => this.show(this.open === name ? null : name));
      matchMedia(WIDE[name]).addEventListener("change", () => this.show(null));
    }
    byId("backdrop").addEventListener("click", () => this.close());
    this.show(null);
  }

  /**
   * Show this area over the chat, or none. An area that is neither beside nor over the chat cannot be reached.
   * @param {Name | null} name
   */
  show(name) {
    this.open = name;
    for (const each of names()) {
      const isOpen = each === name;
      byId(each).classList.toggle("open", isOpen);
      byId(each).inert = !isOpen && !matchMedia(WIDE[each]).matches;
      byId(`toggle-${each}`).setAttribute("aria-expanded", String(isOpen));
    }
    byId("chat").inert = name !== null;
    byId("backdrop").hidden = name === null;
    if (name) /** @type {HTMLElement | null} */ (byId(name).querySelector("button, a, input"))?.focus();
  }

  /** Show none, and give the focus back. Return false if none was open. */
  close() {
    const { open } = this;
    if (!open) return false;
    this.show(null);
    byId(`toggle-${open}`).focus();
    return true;
  }
}

/** @returns {Name[]} */
function names() {
  return /** @type {Name[]} */ (Object.keys(WIDE));
}
