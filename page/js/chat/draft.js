/** Keep the text that a person has not sent yet, for a reload. It belongs to the tab, and ends with it. */

const PREFIX = "taskchat:draft:";

export class Draft {
  /** @param {string} userId */
  constructor(userId) {
    this.name = PREFIX + userId;
  }

  read() {
    try {
      return sessionStorage.getItem(this.name) ?? "";
    } catch {
      return "";
    }
  }

  /** @param {string} text */
  write(text) {
    try {
      if (text) sessionStorage.setItem(this.name, text);
      else sessionStorage.removeItem(this.name);
    } catch { /* a reload loses it then */ }
  }
}
