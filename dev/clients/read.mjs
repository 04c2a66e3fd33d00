// Read streams from a file with the protocols' own clients, and fail at the first that one refuses.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { HttpAgent } from "@ag-ui/client";
import * as v6 from "ai6";
import * as v7 from "ai7";

const url = "http://127.0.0.1/";
const streams = JSON.parse(readFileSync(process.argv[2], "utf8"));
const answer = (body) => async () => new Response(body, { headers: { "content-type": "text/event-stream" } });

for (const { agUi, aiSdk, fails } of streams) {
  const agent = new HttpAgent({ url, fetch: answer(agUi) });
  let failed = false;
  await agent.runAgent({}, { onRunErrorEvent: () => void (failed = true) }); // raises what its verifier refuses
  assert.equal(failed, fails, agUi);
  for (const { DefaultChatTransport } of [v6, v7]) {
    const transport = new DefaultChatTransport({ api: url, fetch: answer(aiSdk) });
    for (const { readUIMessageStream } of [v6, v7]) {
      const stream = await transport.sendMessages({ chatId: "c", messages: [], trigger: "submit-message" });
      let error = false;
      for await (const _message of readUIMessageStream({ stream, terminateOnError: false, onError: (e) => void (error ||= e) }));
      assert.equal(Boolean(error), fails, `${aiSdk}\n${error}`);
      if (error) assert.match(aiSdk, new RegExp(`"errorText":"${error.message}"`));
    }
  }
}
console.log(streams.length);
