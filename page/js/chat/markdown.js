/**
 * Show Markdown as elements. marked only splits the text into tokens; each element is made here, from a fixed list, and
 * each text is a text node. So no markup of a model or a person reaches the page. An image is shown as a link: loading
 * it would tell another host that the message was read.
 */

import { lexer } from "../../vendor/marked.esm.js";
import { element } from "../dom.js";

/** @typedef {{type: string, raw: string, text?: string, tokens?: Token[], [name: string]: any}} Token */

/** @type {Record<string, string>} */
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": "\u00a0" };

/** @type {Record<string, (token: any) => Node | string | null>} */
const WRITERS = {
  space: () => null,
  def: () => null,
  hr: () => element("hr"),
  br: () => element("br"),
  html: (token) => token.block ? element("p", { dir: "auto" }, token.raw) : token.raw,
  checkbox: () => null,
  paragraph: (token) => element("p", { dir: "auto" }, inner(token)),
  heading: (token) => element("h3", { dir: "auto", class: `depth-${token.depth}` }, inner(token)),
  blockquote: (token) => element("blockquote", { dir: "auto" }, inner(token)),
  code: (token) => element("pre", { tabindex: 0, "aria-label": "Code" }, element("code", {}, token.text)),
  list: (token) => element(token.ordered ? "ol" : "ul", { start: token.start || null }, token.items.map(item)),
  table: (token) => element("div", { class: "table", tabindex: 0, role: "group", "aria-label": "Table" }, table(token)),
  strong: (token) => element("strong", {}, inner(token)),
  em: (token) => element("em", {}, inner(token)),
  del: (token) => element("del", {}, inner(token)),
  codespan: (token) => element("code", {}, token.text),
  link: (token) => link(token.href, inner(token)),
  image: (token) => link(token.href, [token.text || token.href]),
  escape: (token) => token.text,
  text: (token) => token.tokens ? element("span", {}, inner(token)) : withoutEntities(token.text),
};

/** Show a text that grows. Blocks that have not changed stay as they are. */
export class MarkdownView {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    /** @type {string[]} */
    this.blocks = [];
  }

  /**
   * Show the text; as it is if it is nested too deep to be drawn.
   * @param {string} text
   */
  show(text) {
    try {
      this.#showBlocks(text);
    } catch { // the stack is too small, and each browser has an error of its own for it
      this.root.replaceChildren(element("p", { class: "as-written", dir: "auto" }, text));
      this.blocks = [];
    }
  }

  /** @param {string} text */
  #showBlocks(text) {
    const tokens = /** @type {Token[]} */ (lexer(text)).filter((token) => token.type !== "space" && token.type !== "def");
    const first = tokens.findIndex((token, place) => token.raw !== this.blocks[place]);
    const kept = first < 0 ? tokens.length : first;
    while (this.root.childNodes.length > kept) this.root.lastChild?.remove();
    this.root.append(...tokens.slice(kept).map(write).filter((node) => node !== null));
    this.blocks = tokens.map((token) => token.raw);
  }
}

/**
 * @param {Token} token
 * @returns {Node | string | null}
 */
function write(token) {
  return WRITERS[token.type]?.(token) ?? (WRITERS[token.type] ? null : token.raw);
}

/** @param {Token} token */
function inner(token) {
  return (token.tokens ?? []).map(write);
}

/** @param {any} token */
function item(token) {
  const box = token.task && element("span", { role: "img", "aria-label": token.checked ? "done" : "open" }, token.checked ? "☑ " : "☐ ");
  return element("li", { dir: "auto", class: token.task ? "task" : null }, box, inner(token));
}

/** @param {any} token */
function table(token) {
  const row = (/** @type {Token[]} */ cells, /** @type {"th" | "td"} */ tag) =>
    element("tr", {}, cells.map((cell) => element(tag, { dir: "auto" }, inner(cell))));
  const body = token.rows.map((/** @type {Token[]} */ cells) => row(cells, "td"));
  return element("table", {}, element("thead", {}, row(token.header, "th")), element("tbody", {}, body));
}

/**
 * Return a link, or only its text if the address is none of the web or of mail.
 * @param {string} address
 * @param {any[]} children
 */
function link(address, children) {
  if (!/^(https?:|mailto:)/i.test(address)) return element("span", {}, children);
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, children);
}

/** @param {string} text */
function withoutEntities(text) {
  return text.replace(/&(?:amp|lt|gt|quot|#39|nbsp);/g, (entity) => ENTITIES[entity]);
}
