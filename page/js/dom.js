/** Make elements. No function here, or anywhere in the page, reads markup from a text. */

/** @typedef {Node | string | number | null | undefined | false | any[]} Child */

/**
 * Return a new element. An attribute with a function is an event listener ("onclick"); `true` is an empty attribute;
 * `false`, `null` and `undefined` leave it out.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) setAttribute(made, name, value);
  made.append(...nodes(children));
  return made;
}

/**
 * Return a button that is not part of a form's submission.
 * @param {string} label
 * @param {(event: Event) => void} onclick
 * @param {Record<string, any>} [attributes]
 */
export function button(label, onclick, attributes = {}) {
  return element("button", { type: "button", onclick, ...attributes }, label);
}

/**
 * Return the element with this id. Raises TypeError when index.html lacks it.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new TypeError(`index.html has no #${id}`);
  return found;
}

/**
 * @param {Element} made
 * @param {string} name
 * @param {any} value
 */
function setAttribute(made, name, value) {
  if (typeof value === "function") made.addEventListener(name.slice(2), value);
  else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value === true ? "" : value);
}

/**
 * @param {Child[]} children
 * @returns {(Node | string)[]}
 */
function nodes(children) {
  return children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false).map(
    (each) => each instanceof Node ? each : String(each),
  );
}
