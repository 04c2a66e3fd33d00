// Show /openapi.json: each operation with its parameters, bodies, answers and examples, then each schema.

/** Return an element with attributes and children. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Return a text with its `code` as elements, and each paragraph of its own. */
function prose(text = "") {
  return text.split("\n\n").map((paragraph) =>
    element("p", {}, ...paragraph.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part))));
}

/** Return a schema in the notation of TypeScript, with a link for each reference. */
function type(schema = {}) {
  const join = (parts, mark) => parts.flatMap((part, index) => (index ? [mark, ...type(part)] : type(part)));
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return [element("a", { href: `#schema-${name}` }, name)];
  }
  if (schema.anyOf) return join(schema.anyOf, " | ");
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" | ")];
  if (schema.type === "array") return ["(", ...type(schema.items), ")[]"];
  if (schema.properties) return ["{…}"];
  if (schema.type === "object") return ["object"];
  return [[schema.type ?? "any", schema.format && `(${schema.format})`].filter(Boolean).join(" ")];
}

const LIMITS = { minLength: "at least", maxLength: "at most", minimum: "from", maximum: "to", pattern: "fits", default: "default" };

function limits(schema) {
  return Object.entries(LIMITS).filter(([name]) => name in schema).map(([name, word]) => `${word} ${schema[name]}`).join(", ");
}

function table(heads, rows) {
  const header = element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, ...[cell].flat()))));
  return element("table", {}, element("thead", {}, header), element("tbody", {}, ...body));
}

const code = (...children) => element("code", {}, ...children);
const example = (value) => element("pre", { tabindex: "0" }, typeof value === "string" ? value : JSON.stringify(value, null, 2));

/** Return the kinds and examples of a body, each example behind its name. */
function contents(content = {}) {
  return Object.entries(content).flatMap(([kind, { schema, example: only, examples = {} }]) => {
    const named = only === undefined ? Object.entries(examples).map(([name, { value }]) => [name, value]) : [["example", only]];
    const shown = named.map(([name, value]) => element("details", {}, element("summary", {}, name), example(value)));
    return [element("p", {}, code(kind), " ", code(...type(schema)), " ", schema.description ?? ""), ...shown];
  });
}

function parameters(operation) {
  if (!operation.parameters) return [];
  const rows = operation.parameters.map(({ name, in: place, required, schema, description }) =>
    [code(name), `${place}${required ? ", required" : ""}`, code(...type(schema)), `${description ?? ""} ${limits(schema)}`]);
  return [element("h4", {}, "Parameters"), table(["Name", "In", "Type", "Meaning"], rows)];
}

function answers(operation) {
  const rows = Object.entries(operation.responses).map(([status, { description, headers = {}, content }]) =>
    [code(status), [element("p", {}, description), element("p", { class: "muted" }, "Headers: ", Object.keys(headers).join(", ")), ...contents(content)]]);
  return [element("h4", {}, "Answers"), table(["Status", "Meaning"], rows)];
}

function operationSection(path, method, operation) {
  const body = operation.requestBody;
  return element("section", { id: operation.operationId },
    element("h3", {}, `${operation.summary} `, code(operation.operationId)),
    element("p", {}, code(`${method.toUpperCase()} ${path}`), operation.security.length ? "" : " needs no token"),
    ...prose(operation.description),
    ...parameters(operation),
    ...(body ? [element("h4", {}, "Body"), ...prose(body.description), ...contents(body.content)] : []),
    ...answers(operation));
}

function schemaSection([name, schema]) {
  const members = Object.entries(schema.properties ?? {}).map(([member, value]) =>
    [code(member), schema.required?.includes(member) ? "always" : "perhaps", code(...type(value)), `${value.description ?? ""} ${limits(value)}`]);
  return element("section", { id: `schema-${name}` }, element("h3", {}, code(name)), ...prose(schema.description),
    schema.anyOf ? element("p", {}, code(...type(schema))) : table(["Member", "There", "Type", "Meaning"], members));
}

/** Show the whole description. */
function show(api) {
  const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => [path, method, operation]));
  const [main, nav] = [document.querySelector("main"), document.querySelector("nav")];
  main.append(element("h1", {}, `${api.info.title} ${api.info.version}`), ...prose(api.info.summary), ...prose(api.info.description));
  for (const { name, description } of api.tags) {
    main.append(element("h2", {}, name), ...prose(description));
    nav.append(element("p", { class: "muted" }, name));
    for (const [path, method, operation] of operations.filter(([, , { tags }]) => tags.includes(name))) {
      main.append(operationSection(path, method, operation));
      nav.append(element("a", { href: `#${operation.operationId}` }, operation.summary));
    }
  }
  main.append(element("h2", {}, "Schemas"), ...Object.entries(api.components.schemas).map(schemaSection));
  nav.append(element("p", { class: "muted" }, "Schemas"),
    ...Object.keys(api.components.schemas).map((name) => element("a", { href: `#schema-${name}` }, name)));
  document.title = `${api.info.title}: API reference`;
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

show(await (await fetch("/openapi.json")).json());
