/** Read a conversation from the server, and follow a turn in it that another tab or device has sent. */

import { readEvents } from "./stream.js";

const PAGE_TURNS = 30;

export class History {
  /** @param {import("../api.js").Api} api */
  constructor(api) {
    this.api = api;
  }

  /**
   * Return a page of the turns, the oldest first, and the cursor of older ones. Raises Problem.
   * @param {string} conversation
   * @param {AbortSignal} signal
   * @param {string | null} [cursor]
   * @returns {Promise<{turns: Record<string, any>[], older: string | null}>}
   */
  async page(conversation, signal, cursor) {
    const query = new URLSearchParams({ limit: String(PAGE_TURNS), ...(cursor ? { cursor } : {}) });
    const path = `${this.api.person}/conversations/${encodeURIComponent(conversation)}?${query}`;
    const page = await this.api.json("GET", path, { signal });
    return { turns: page.turns.reverse(), older: page.next_cursor };
  }

  /**
   * Show the events of the turn that runs in the conversation. Return true if they came to an end. Raises Problem.
   * The route speaks the AI SDK's protocol, because it needs no key.
   * @param {import("./turn.js").Turn} turn
   * @param {string} conversation
   * @param {AbortSignal} signal
   */
  async follow(turn, conversation, signal) {
    const path = `${this.api.person}/chat/${encodeURIComponent(conversation)}/stream`;
    const response = await this.api.open("GET", path, { signal });
    /** @type {Map<string, import("../config.js").Call>} */
    const calls = new Map();
    for await (const { data } of readEvents(response)) {
      if (data.type === "finish" || data.type === "error") return true;
      const event = translate(data, calls);
      if (event?.name === "accepted" && event.data.turn_id !== turn.id) return false;
      if (event && turn.isRunning && !turn.isLive) turn.apply(event);
    }
    return false;
  }
}

/**
 * Return the event that a part of the AI SDK's stream stands for, or null.
 * @param {any} part
 * @param {Map<string, import("../config.js").Call>} calls the calls that have begun
 * @returns {import("./stream.js").Event | null}
 */
function translate(part, calls) {
  const event = (/** @type {string} */ name, /** @type {any} */ data) => ({ name, data, retry: null });
  switch (part.type) {
    case "start": {
      const { conversationId, turnId } = part.messageMetadata;
      return event("accepted", { conversation_id: conversationId, turn_id: turnId });
    }
    case "tool-input-available": {
      const call = { call_id: part.toolCallId, tool: part.toolName, arguments: part.input };
      calls.set(call.call_id, call);
      return event("tool_started", call);
    }
    case "tool-output-available":
      return event("tool_finished", { ...calls.get(part.toolCallId), outcome: "ok", result: part.output });
    case "tool-output-error":
      return event("tool_finished", { ...calls.get(part.toolCallId), outcome: "error", result: { error: part.errorText } });
    case "text-delta":
      return event("text", { message: part.id, text: part.delta });
    default:
      return null;
  }
}
