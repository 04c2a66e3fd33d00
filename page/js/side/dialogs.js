/** Ask the person in a dialog. The element gives the focus back when it closes. */

import { element } from "../dom.js";
import { explain } from "./explain.js";

let made = 0;

/**
 * Open a dialog with a heading, `content`, "Cancel" and a button `action`. The button runs `work`: the dialog closes
 * when it is done, and shows the problem when it fails. The result is true after `work`, and false otherwise.
 * @param {string} heading
 * @param {Node[]} content
 * @param {{action: string, danger?: boolean, work: () => Promise<unknown>}} how
 * @returns {Promise<boolean>}
 */
export function ask(heading, content, { action, danger = false, work }) {
  const name = `dialog-${++made}`;
  const problem = element("p", { class: "problem", role: "alert", hidden: "" });
  const cancel = element("button", { type: "button" }, "Cancel");
  const submit = element("button", { type: "submit", class: danger ? "danger" : "primary" }, action);
  const buttons = element("div", { class: "dialog-buttons" }, cancel, submit);
  const form = element("form", { method: "dialog" }, element("h2", { id: name }, heading), ...content, problem, buttons);
  const dialog = element("dialog", { class: "ask", "aria-labelledby": name }, form);
  let done = false;
  cancel.addEventListener("click", () => dialog.close());
  onSubmit(form, { submit, problem, sentence: explain }, async () => {
    await work();
    done = true;
    dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.stopPropagation(); // it closes the dialog, and must not stop a turn too
  });
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(done);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/**
 * Run `work` when the form is sent, once at a time. A failure is shown as its sentence.
 * @param {HTMLFormElement} form
 * @param {{submit: HTMLButtonElement, problem: HTMLElement, sentence: (error: unknown) => string}} parts
 * @param {() => Promise<unknown>} work
 */
export function onSubmit(form, { submit, problem, sentence }, work) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (submit.disabled) return;
    submit.disabled = true;
    problem.hidden = true;
    try {
      await work();
    } catch (error) {
      problem.textContent = sentence(error);
      problem.hidden = false;
    } finally {
      submit.disabled = false;
    }
  });
}

/**
 * Return a labelled input, as the two elements to put into a form.
 * @param {string} label
 * @param {Record<string, any>} attributes
 * @returns {[HTMLLabelElement, HTMLInputElement]}
 */
export function field(label, attributes) {
  const id = `field-${++made}`;
  return [element("label", { for: id }, label), element("input", { id, ...attributes })];
}
