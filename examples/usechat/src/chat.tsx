import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport, isToolUIPart, getToolName } from "ai";
import { type FormEvent, useMemo, useState } from "react";
import type { Session } from "./session.ts";

export function Chat({ session }: { session: Session }) {
  const [id] = useState(() => crypto.randomUUID()); // a UUID is the conversation's id
  const transport = useMemo(
    () =>
      new DefaultChatTransport({
        api: `/api/${session.user_id}/chat`,
        headers: { Authorization: `Bearer ${session.token}` },
        body: { timezone: Intl.DateTimeFormat().resolvedOptions().timeZone },
      }),
    [session],
  );
  const { messages, sendMessage, regenerate, status, error } = useChat({ id, transport });

  function send(event: FormEvent<HTMLFormElement>) {
    event.preventDefault();
    const text = String(new FormData(event.currentTarget).get("message"));
    event.currentTarget.reset();
    void sendMessage({ text });
  }

  return (
    <>
      <section role="log" aria-label="Conversation">
        {messages.map((message) => (
          <article key={message.id} aria-label={message.role}>
            {message.parts.map((part, index) => {
              if (part.type === "text") return <p key={index}>{part.text}</p>;
              if (isToolUIPart(part)) return <code key={index}>{`${getToolName(part)}: ${part.state}`}</code>;
            })}
          </article>
        ))}
      </section>
      {error && (
        <p role="alert">
          {error.message} <button onClick={() => void regenerate()}>Retry</button>
        </p>
      )}
      <form onSubmit={send}>
        <input name="message" aria-label="Message" required maxLength={4000} autoComplete="off" />
        <button disabled={status === "submitted" || status === "streaming"}>Send</button>
      </form>
    </>
  );
}
