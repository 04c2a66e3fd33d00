/** Write a message: Enter sends, Shift+Enter begins a line, arrow-up recalls, Escape stops. */

const MOST = 4000; // characters of a message, as the server counts them
const HINT = "An answer is on its way. Your text stays here: send it afterwards, or press Stop first.";

/**
 * @typedef {object} Needs
 * @property {HTMLFormElement} form
 * @property {HTMLTextAreaElement} box
 * @property {HTMLButtonElement} send
 * @property {HTMLButtonElement} stop
 * @property {HTMLElement} hint
 * @property {import("./draft.js").Draft} draft
 * @property {(text: string) => void} announce
 * @property {(text: string) => void} onSend
 * @property {() => void} onStop
 * @property {() => string[]} sent the person's messages, the oldest first
 */

export class Composer {
  /** @param {Needs} needs */
  constructor(needs) {
    this.needs = needs;
    this.isRunning = false;
    /** Place in the recalled messages, counted from the newest; 0 is the person's own text. */
    this.recalled = 0;
    const { form, box, stop, draft, onStop } = needs;
    form.addEventListener("submit", (event) => { event.preventDefault(); this.#submit(); });
    box.addEventListener("keydown", (event) => this.#press(event));
    box.addEventListener("input", () => { this.recalled = 0; this.#changed(); });
    stop.addEventListener("click", onStop);
    box.value = draft.read();
    this.#changed();
  }

  /** @param {boolean} isRunning */
  setRunning(isRunning) {
    const { send, stop } = this.needs;
    const hadFocus = document.activeElement === stop;
    this.isRunning = isRunning;
    send.hidden = isRunning;
    stop.hidden = !isRunning;
    if (!isRunning) this.#hint("");
    if (hadFocus && !isRunning) this.focus();
  }

  /** Take the focus, unless that would open a keyboard on the screen. */
  focus() {
    if (matchMedia("(hover: hover)").matches) this.needs.box.focus();
  }

  /** @param {string} text */
  setText(text) {
    const { box } = this.needs;
    box.value = text;
    box.focus();
    box.setSelectionRange(text.length, text.length);
    this.#changed();
  }

  /** Keep the text. Refuse one that the server would refuse: the browser says why when the person sends it. */
  #changed() {
    const { box, draft } = this.needs;
    draft.write(box.value);
    const length = [...box.value.trim()].length;
    const fault = `A message has up to ${MOST.toLocaleString()} characters. This one has ${length.toLocaleString()}.`;
    box.setCustomValidity(length > MOST ? fault : "");
  }

  #submit() {
    const { box, onSend } = this.needs;
    const text = box.value.trim();
    if (!text) return;
    if (this.isRunning) return this.#hint(HINT);
    box.value = "";
    this.#changed();
    this.recalled = 0;
    onSend(text);
  }

  /** @param {string} text */
  #hint(text) {
    const { hint, announce } = this.needs;
    hint.textContent = text;
    hint.hidden = !text;
    if (text) announce(text);
  }

  /** @param {KeyboardEvent} event */
  #press(event) {
    if (event.isComposing || event.keyCode === 229) return; // an input method takes the key
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.needs.form.requestSubmit();
    } else if (event.key === "ArrowUp") this.#recall(event, 1);
    else if (event.key === "ArrowDown") this.#recall(event, -1);
  }

  /**
   * @param {KeyboardEvent} event
   * @param {number} step
   */
  #recall(event, step) {
    const { box, sent } = this.needs;
    if (this.recalled === 0 && (box.value || step < 0)) return;
    const texts = sent();
    const place = this.recalled + step;
    if (place > texts.length) return;
    event.preventDefault();
    this.setText(place === 0 ? "" : texts[texts.length - place]);
    this.recalled = place;
  }
}
