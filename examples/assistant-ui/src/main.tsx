import { createRoot } from "react-dom/client";
import { Chat } from "./chat.tsx";
import { fetchSession } from "./session.ts";

const session = await fetchSession();
createRoot(document.getElementById("root")!).render(<Chat session={session} />);
