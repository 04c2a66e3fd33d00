// The documented configuration, with one account of a fixed id: the developer, whose tasks the page shows.
import { betterAuth } from "better-auth";
import { auth as documented } from "./auth.mjs";

const { DEVELOPER_EMAIL: email, DEVELOPER_ID: id } = process.env;
const nameDeveloper = async (user) => ({ data: user.email === email ? { ...user, id } : user });

export const auth = betterAuth({
  ...documented.options,
  databaseHooks: { user: { create: { before: nameDeveloper } } },
});
