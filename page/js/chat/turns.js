/** Keep the turns of a conversation in their order: those of the history, and messages on their way among them. */

import { Turn } from "./turn.js";

export class Turns {
  constructor() {
    /** @type {Turn[]} */
    this.list = [];
  }

  /**
   * Take in turns of the history, the oldest first: the newest ones, or ones before all that are known.
   * A turn that this tab sends is left to its events.
   * @param {string} conversation
   * @param {Record<string, any>[]} stored
   * @param {"newest" | "older"} where
   */
  merge(conversation, stored, where) {
    const turns = stored.map((each, place) => this.#known(each, stored[place - 1]) ?? Turn.ofHistory(conversation, each));
    turns.forEach((turn, place) => { if (!turn.isLive) update(turn, stored[place]); });
    const rest = this.list.filter((turn) => !turns.includes(turn));
    const settled = rest.filter((turn) => !turn.key);
    this.list = where === "newest" ? [...settled, ...turns] : [...turns, ...settled];
    for (const turn of rest) if (turn.key) this.add(turn);
  }

  /**
   * Add a message on its way: in the place of the turn of its id, or after the one before it, or at the end.
   * @param {Turn} turn
   */
  add(turn) {
    if (this.list.includes(turn)) return;
    const same = this.list.findIndex((each) => each.id !== null && each.id === turn.id);
    if (same >= 0) this.list[same] = turn;
    else this.list.splice(this.#placeAfter(turn), 0, turn);
  }

  /** Remove the turns of the history. */
  keepOnTheWay() {
    this.list = this.list.filter((turn) => turn.key);
  }

  /** @param {Turn} turn */
  remove(turn) {
    this.list = this.list.filter((each) => each !== turn);
  }

  /**
   * Remove every other turn with this turn's id. Return true if there was one.
   * @param {Turn} turn
   */
  removeDoubles(turn) {
    const length = this.list.length;
    this.list = this.list.filter((each) => each === turn || each.id !== turn.id);
    return this.list.length < length;
  }

  /**
   * Return the turn for one of the history. A message whose turn has no id yet, because the page was left before the
   * answer began, is the one after the turn that was before it.
   * @param {Record<string, any>} stored
   * @param {Record<string, any>} [before]
   */
  #known(stored, before) {
    const same = this.list.find((turn) => turn.id === stored.turn_id);
    if (same) return same;
    const waiting = this.list.find((turn) =>
      turn.id === null && turn.key && turn.message === stored.message && before && turn.after === before.turn_id);
    if (waiting) waiting.id = stored.turn_id;
    return waiting;
  }

  /** @param {Turn} turn */
  #placeAfter(turn) {
    const before = turn.after === null ? -1 : this.list.findIndex((each) => each.id === turn.after);
    if (before < 0) return this.list.length;
    let place = before + 1;
    while (this.list[place]?.key && this.list[place].after === turn.after && this.list[place].startedAt < turn.startedAt) place += 1;
    return place;
  }
}

/**
 * @param {Turn} turn
 * @param {Record<string, any>} stored
 */
function update(turn, stored) {
  if (stored.status === "done" || !turn.key) turn.readHistory(stored);
}
