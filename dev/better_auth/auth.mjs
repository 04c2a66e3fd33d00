import { oauthProvider } from "@better-auth/oauth-provider";
import { betterAuth } from "better-auth";
import { APIError } from "better-auth/api";
import { bearer, jwt } from "better-auth/plugins";
import pg from "pg";

const url = process.env.BETTER_AUTH_URL; // an origin, without a slash at its end: taskchat's AUTH_ISSUER and AUTH_AUDIENCE
const resource = process.env.MCP_RESOURCE_URL; // the same value as taskchat's
const taskchat = process.env.TASKCHAT_URL; // the origin that serves taskchat, without a slash at its end
const page = process.env.PAGE_URL; // the origin of the chat page, if there is one

async function eraseFromTaskchat(user) {
  const payload = { sub: user.id, iat: Math.floor(Date.now() / 1000) }; // signJWT adds no iat, and taskchat wants one
  const { token } = await auth.api.signJWT({ body: { payload } });
  const request = { method: "DELETE", headers: { Authorization: `Bearer ${token}`, Confirm: "erase" } };
  let answer;
  do {
    answer = await fetch(`${taskchat}/api/${user.id}`, request).catch(() => undefined);
  } while (answer?.status === 504); // there was much to erase: the same request goes on
  if (answer?.status !== 204) throw new APIError("SERVICE_UNAVAILABLE", { message: "Try again in a minute." });
}

export const auth = betterAuth({
  baseURL: url,
  secret: process.env.BETTER_AUTH_SECRET,
  database: new pg.Pool({ connectionString: process.env.BETTER_AUTH_DATABASE_URL }),
  trustedOrigins: page ? [page] : [],
  emailAndPassword: { enabled: true },
  user: { deleteUser: { enabled: true, beforeDelete: eraseFromTaskchat } }, // if it throws, the account stays
  plugins: [
    bearer(),
    jwt({
      jwks: {
        keyPairConfig: { alg: "EdDSA", crv: "Ed25519" },
        rotationInterval: 30 * 24 * 3600, // seconds until a new key signs
        gracePeriod: 24 * 3600, // seconds for which the old one stays published; no token lives longer than an hour
      },
      jwt: {
        issuer: url, // for both kinds of token: the OAuth provider would otherwise add /api/auth
        audience: url,
        expirationTime: "15m",
        definePayload: () => ({}), // the user's id is enough; by default name and email would be in every token
      },
    }),
    oauthProvider({
      loginPage: "/sign-in",
      consentPage: "/consent",
      scopes: ["tasks:read", "tasks:write", "offline_access"], // no openid: with it a token has two audiences
      resources: [resource],
      clientRegistrationDefaultResources: [resource],
      allowDynamicClientRegistration: true,
      allowUnauthenticatedClientRegistration: true, // MCP clients register before anybody has signed in
      grantTypes: ["authorization_code", "refresh_token"], // no client_credentials: their subject is no person
      accessTokenExpiresIn: 15 * 60,
    }),
  ],
});
