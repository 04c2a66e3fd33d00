import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// The API allows no other origin in development, so Vite passes its paths on.
const target = process.env.URL ?? "http://127.0.0.1:8000";
const proxy = { "/api": { target, changeOrigin: true }, "/dev": { target, changeOrigin: true } };

export default defineConfig({ plugins: [react()], server: { proxy }, preview: { proxy } });
