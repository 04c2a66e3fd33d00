// Serve Better Auth on this machine: `node server.mjs [auth.mjs]` prints its address once it serves.
import { once } from "node:events";
import { createServer } from "node:http";
import { getMigrations } from "better-auth/db/migration";
import { toNodeHandler } from "better-auth/node";

const server = createServer();
server.listen(0, "127.0.0.1");
await once(server, "listening");
const address = `http://127.0.0.1:${server.address().port}`;
process.env.BETTER_AUTH_URL ??= address; // auth.mjs reads it, so import that later

const { auth } = await import(process.argv[2] ?? "./auth.mjs");
const { runMigrations } = await getMigrations(auth.options);
await runMigrations();
server.on("request", toNodeHandler(auth)); // all paths: the OAuth metadata is outside /api/auth
console.log(address);
