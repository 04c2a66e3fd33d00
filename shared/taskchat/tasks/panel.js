// Show the person's tasks beside the chat, and say each tool call in a line. The page loads this module as ./panel.js.

export const title = "Tasks";

export const suggestions = [
  "Add buy milk",
  "Add call mum tomorrow at 9",
  "What is due this week?",
  "Show my tasks",
];

const PAGE = 100;
const MOST_PAGES = 5;
const DAY = 24 * 3600 * 1000;

// --- a tool call in a line ------------------------------------------------------------------------------------

const VERBS = {
  add_task: ["Adding", "Added", "add"],
  complete_task: ["Finishing", "Finished", "finish"],
  delete_task: ["Deleting", "Deleted", "delete"],
  update_task: ["Changing", "Changed", "change"],
  list_tasks: ["Looking at", "Looked at", "look at"],
};

export const concerns = ({ tool, outcome }) => tool in VERBS && tool !== "list_tasks" && outcome !== "error";

export function describe({ tool, arguments: given, outcome, result }) {
  if (!(tool in VERBS)) return `${outcome ? "Called" : "Calling"} ${tool.replaceAll("_", " ")}`;
  const [doing, done, todo] = VERBS[tool];
  const thing = nameOf(tool, given ?? {}, result ?? {});
  if (!outcome) return `${doing} ${thing}…`;
  if (outcome === "error") return `Could not ${todo} ${thing}${result?.error ? `: ${result.error}` : "."}`;
  return tool === "update_task" ? changed(given ?? {}, result ?? {}, thing) : `${done} ${thing}`;
}

function nameOf(tool, given, result) {
  if (tool === "list_tasks") return "the tasks";
  return result.before?.title ?? result.title ?? given.title ?? (given.task_id ? `task ${given.task_id}` : "a task");
}

function changed(given, result, thing) {
  if (Object.keys(given).filter((name) => name !== "task_id").length > 1) return `Changed ${thing}`;
  if (given.completed === true) return `Finished ${thing}`;
  if (given.completed === false) return `Reopened ${thing}`;
  if (given.title) return `Renamed ${thing} to ${given.title}`;
  if (given.due) return result.due ? `Moved ${thing} to ${dueText(result.due)}` : `Removed the date of ${thing}`;
  return `Changed ${thing}`;
}

// --- when a task is due ---------------------------------------------------------------------------------------

// A day such as 2026-11-27 is the same day everywhere. 2026-11-27T09:00+01:00[Europe/Paris] is an instant.
const isDay = (due) => due.length === "2026-11-27".length;
const parse = (due) => new Date(isDay(due) ? `${due}T00:00` : due.replace(/\[.*\]$/, ""));
const midnight = (time) => new Date(time.getFullYear(), time.getMonth(), time.getDate());

function dueText(due) {
  const time = parse(due);
  const year = time.getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" };
  const clock = isDay(due) ? {} : { hour: "numeric", minute: "2-digit" };
  const form = { weekday: "short", day: "numeric", month: "short", ...year, ...clock };
  return new Intl.DateTimeFormat(undefined, form).format(time);
}

const GROUPS = ["Overdue", "Today", "This week", "Later", "Without a date"];

// The week ends on Sunday, as that of the server does.
function groupOf({ due }, now = new Date()) {
  if (!due) return "Without a date";
  const time = parse(due);
  const today = midnight(now);
  const days = Math.round((midnight(time) - today) / DAY);
  if (isDay(due) ? days < 0 : time < now) return "Overdue";
  if (days === 0) return "Today";
  return days <= (7 - today.getDay()) % 7 ? "This week" : "Later";
}

// --- the list -------------------------------------------------------------------------------------------------

async function read(get, status) {
  const tasks = [];
  let cursor = null;
  for (let page = 0; page < MOST_PAGES; page++) {
    const query = new URLSearchParams({ status, limit: PAGE, ...(cursor && { cursor }) });
    const found = await get(`/tasks?${query}`);
    tasks.push(...found.tasks);
    cursor = found.next_cursor;
    if (!cursor) break;
  }
  return { tasks, isWhole: !cursor };
}

// Draw the list in `root`. The next call draws it anew, but for the disclosure of the completed ones: the person may
// open it while the tasks are read.
export async function render(root, { get, element }) {
  const pending = await read(get, "pending");
  const completed = root.querySelector("details.completed") ?? disclosure(element, get);
  const hadFocus = completed.contains(document.activeElement);
  const groups = GROUPS.map((name) => [name, pending.tasks.filter((task) => groupOf(task) === name)]);
  root.replaceChildren(
    ...groups.filter(([, tasks]) => tasks.length).flatMap(([name, tasks]) => group(element, name, tasks)),
    ...(pending.tasks.length ? [] : [element("p", { class: "note" }, "Nothing to do.")]),
    ...(pending.isWhole ? [] : [element("p", { class: "note" }, `The first ${pending.tasks.length} are shown.`)]),
    completed,
  );
  if (hadFocus) completed.querySelector("summary").focus();
  if (completed.open) await showCompleted(completed.lastElementChild, { get, element });
}

function group(element, name, tasks) {
  const heading = element("h3", { class: name === "Overdue" ? "overdue" : "" }, name);
  const list = element("ul", { class: "tasks", "aria-label": name });
  list.append(...tasks.map((task) => line(element, task)));
  return [heading, list];
}

function line(element, { title: text, description, due, completed }) {
  const item = element("li", { class: completed ? "task completed" : "task" });
  item.append(element("span", { class: "title", dir: "auto" }, text));
  if (description) item.append(element("span", { class: "description", dir: "auto" }, description));
  if (due) item.append(element("time", { datetime: due.replace(/\[.*\]$/, "") }, dueText(due)));
  return item;
}

// The completed tasks are read when the person opens them.
function disclosure(element, get) {
  const list = element("div", {});
  const details = element("details", { class: "completed" }, element("summary", {}, "Completed"), list);
  details.addEventListener("toggle", () => {
    if (details.open) showCompleted(list, { get, element });
  });
  return details;
}

async function showCompleted(list, { get, element }) {
  try {
    list.replaceChildren(...finished(element, await read(get, "completed")));
  } catch {
    list.replaceChildren(element("p", { class: "note", role: "alert" }, "They could not be read. Close and open again."));
  }
}

function finished(element, { tasks, isWhole }) {
  if (!tasks.length) return [element("p", { class: "note" }, "None yet.")];
  const list = element("ul", { class: "tasks" });
  list.append(...tasks.map((task) => line(element, task)));
  return isWhole ? [list] : [list, element("p", { class: "note" }, `The first ${tasks.length} are shown.`)];
}
