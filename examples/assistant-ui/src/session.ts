export type Session = { token: string; user_id: string };

/** Return who uses the page. `make dev` gives out tokens; a real page takes one from its sign-in. */
export async function fetchSession(): Promise<Session> {
  const response = await fetch("/dev/token");
  if (!response.ok) throw new Error("Start the server with `make dev`.");
  return response.json();
}
