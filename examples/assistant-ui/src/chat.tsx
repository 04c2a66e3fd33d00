import { HttpAgent } from "@ag-ui/client";
import {
  AssistantRuntimeProvider,
  ComposerPrimitive,
  ErrorPrimitive,
  MessagePrimitive,
  ThreadPrimitive,
  type ToolCallMessagePartProps,
} from "@assistant-ui/react";
import { useAgUiRuntime } from "@assistant-ui/react-ag-ui";
import { useMemo } from "react";
import type { Session } from "./session.ts";

export function Chat({ session }: { session: Session }) {
  const agent = useMemo(
    () =>
      new HttpAgent({
        url: `/api/${session.user_id}/chat`,
        headers: { Authorization: `Bearer ${session.token}` },
        threadId: crypto.randomUUID(), // a UUID is the conversation's id
      }),
    [session],
  );
  const runtime = useAgUiRuntime({ agent });

  return (
    <AssistantRuntimeProvider runtime={runtime}>
      <ThreadPrimitive.Root>
        <section role="log" aria-label="Conversation">
          <ThreadPrimitive.Messages components={{ Message }} />
        </section>
        <ComposerPrimitive.Root>
          <ComposerPrimitive.Input aria-label="Message" />
          <ComposerPrimitive.Send>Send</ComposerPrimitive.Send>
        </ComposerPrimitive.Root>
      </ThreadPrimitive.Root>
    </AssistantRuntimeProvider>
  );
}

function Message() {
  return (
    <MessagePrimitive.Root>
      <MessagePrimitive.Parts components={{ tools: { Fallback: ToolCall } }} />
      <MessagePrimitive.Error>
        <ErrorPrimitive.Root role="alert">
          <ErrorPrimitive.Message />
        </ErrorPrimitive.Root>
      </MessagePrimitive.Error>
    </MessagePrimitive.Root>
  );
}

function ToolCall({ toolName, status }: ToolCallMessagePartProps) {
  return <code>{`${toolName}: ${status.type}`}</code>;
}
