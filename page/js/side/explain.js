// Say in a sentence or two why a request failed, and what the person can do.

const SENTENCES = {
  401: "Your sign-in has ended. Reload the page.",
  403: "This belongs to another person.",
  404: "It is not there any more.",
  409: "A turn is running in this conversation. Try again when it has ended.",
  503: "The server cannot reach its database. Nothing was changed. Try again in a moment.",
  504: "It took too long. Try again: it goes on where it stopped.",
};

export function explain(error) {
  if (error instanceof TypeError || error.status === 0) return "The server does not answer. Check your connection, then try again.";
  if (error.status === 429) return `Too many requests. Try again in ${seconds(error.retryAfter)}.`;
  return SENTENCES[error.status] ?? error.problem?.detail ?? error.problem?.title ?? error.message;
}

function seconds(number) {
  const rounded = Math.max(1, Math.ceil(number ?? 1));
  return rounded === 1 ? "a second" : `${rounded} seconds`;
}
