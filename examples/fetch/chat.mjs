// Take one turn with fetch alone, and print its events as they come. The same code runs in a browser.
const url = process.env.URL ?? "http://127.0.0.1:8000";
const { token, user_id } = process.env.TOKEN
  ? { token: process.env.TOKEN, user_id: process.env.USER_ID }
  : await (await fetch(`${url}/dev/token`)).json(); // `make dev` gives out tokens, a deployment does not

const message = process.argv[2] ?? "Add buy milk, then show my tasks";
const key = crypto.randomUUID(); // the same key makes a retry safe

/** Yield each event of a turn: `{event, id, data}`. */
async function* events(stream) {
  let rest = "";
  for await (const piece of stream.pipeThrough(new TextDecoderStream())) {
    const frames = (rest + piece).split("\n\n");
    rest = frames.pop();
    for (const frame of frames.filter((each) => each.startsWith("event:"))) { // a comment keeps the connection alive
      const lines = frame.split("\n").map((line) => line.split(/: (.*)/s));
      const { event, id, data } = Object.fromEntries(lines);
      yield { event, id, data: JSON.parse(data) };
    }
  }
}

const response = await fetch(`${url}/api/${user_id}/chat`, {
  method: "POST",
  headers: {
    Authorization: `Bearer ${token}`,
    "Content-Type": "application/json",
    Accept: "text/event-stream",
    "Idempotency-Key": key,
  },
  body: JSON.stringify({ message, timezone: Intl.DateTimeFormat().resolvedOptions().timeZone }),
});
if (!response.ok) {
  const problem = await response.json();
  console.error(`${problem.title} ${problem.detail ?? ""} (${problem.type})`);
  process.exit(1);
}
for await (const { event, data } of events(response.body)) {
  if (event === "tool_started") console.log(`${data.tool} ${JSON.stringify(data.arguments)}`);
  if (event === "text") process.stdout.write(data.text);
  if (event === "finished") console.log();
  if (event === "failed") throw new Error(data.title); // the same request with the same key goes on from here
}
