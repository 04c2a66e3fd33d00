/** Show the turns of a conversation as a log that stays at its end, unless the person has scrolled up. */

import { button, element } from "../dom.js";
import { TurnView } from "./view.js";

const NEAR_THE_END = 80; // pixels

export class Log {
  /**
   * @param {object} needs
   * @param {HTMLElement} needs.root
   * @param {HTMLElement} needs.scroller
   * @param {HTMLElement} needs.toEnd
   * @param {import("./view.js").Actions} needs.actions
   * @param {() => void} needs.onOlder
   */
  constructor({ root, scroller, toEnd, actions, onOlder }) {
    this.root = root;
    this.scroller = scroller;
    this.toEnd = toEnd;
    this.actions = actions;
    this.isAtEnd = true;
    /** @type {Map<import("./turn.js").Turn, TurnView>} */
    this.views = new Map();
    this.olderProblem = element("span", { role: "alert" });
    this.older = element("p", { class: "older" }, button("Show earlier messages", onOlder), this.olderProblem);
    this.#keepAtTheEnd();
    new IntersectionObserver(([seen]) => { if (seen.isIntersecting) onOlder(); }, { root: scroller }).observe(this.older);
  }

  /** Remove everything. */
  clear() {
    for (const view of this.views.values()) view.close();
    this.views.clear();
    this.root.replaceChildren();
    this.goToEnd();
  }

  /** Say that the conversation is on its way. The style shows it after a moment. */
  showLoading() {
    this.root.replaceChildren(element("p", { class: "loading" }, "Loading…"));
  }

  /**
   * Bring the log in line with the turns.
   * @param {import("./turn.js").Turn[]} turns
   * @param {{hasOlder: boolean, before?: HTMLElement[]}} around
   */
  show(turns, { hasOlder, before = [] }) {
    for (const [turn, view] of this.views) {
      if (turns.includes(turn)) continue;
      view.close();
      this.views.delete(turn);
    }
    arrange(this.root, [...(hasOlder ? [this.older] : []), ...before, ...turns.map((turn) => this.#view(turn).root)]);
  }

  /**
   * Say why the earlier turns are not there, or nothing.
   * @param {string} text
   */
  sayOlder(text) {
    this.olderProblem.textContent = text;
  }

  /**
   * Change the log above the place that the person reads, and keep that place where it is.
   * @param {() => void} change
   */
  keepPlace(change) {
    const fromEnd = this.scroller.scrollHeight - this.scroller.scrollTop;
    change();
    this.scroller.scrollTop = this.scroller.scrollHeight - fromEnd;
  }

  goToEnd() {
    this.isAtEnd = true;
    this.toEnd.hidden = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** @param {import("./turn.js").Turn} turn */
  #view(turn) {
    const view = this.views.get(turn) ?? new TurnView(turn, this.actions);
    this.views.set(turn, view);
    return view;
  }

  #keepAtTheEnd() {
    this.toEnd.addEventListener("click", () => this.goToEnd());
    this.scroller.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.scroller;
      this.isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_THE_END;
      this.toEnd.hidden = this.isAtEnd;
    }, { passive: true });
    const sizes = new ResizeObserver(() => { if (this.isAtEnd) this.goToEnd(); });
    sizes.observe(this.root);
    sizes.observe(this.scroller);
  }
}

/**
 * Make these the children of an element, and move only those that are not in their place.
 * @param {Element} root
 * @param {Element[]} wanted
 */
export function arrange(root, wanted) {
  const kept = new Set(wanted);
  for (const child of [...root.children]) if (!kept.has(child)) child.remove();
  wanted.forEach((child, place) => {
    if (root.children[place] !== child) root.insertBefore(child, root.children[place] ?? null);
  });
}
