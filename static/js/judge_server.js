// How the judging page talks to the server: one patience, JSON both ways, and a name for whatever
// went wrong, so that everything above it decides by name and nothing is taken for an answer that
// is none (a sign-in page, an error page, another person's session).
class Trouble extends Error {
  // "unreachable" may pass by itself; "signed-out", "someone-else", "stale" and "gone" do not.
  constructor(kind) {
    super(kind);
    this.kind = kind;
  }
}

const server = (() => {
  const PATIENCE = 20 * 1000; // ms
  const SMALL = 30 * 1024; // bytes: what browsers go on sending while a page closes
  const PASSING = [408, 425, 429];
  const desk = () => document.getElementById("judge-desk").dataset;
  const token = () => document.querySelector("[name=csrfmiddlewaretoken]").value;

  const reach = async (url, options) => {
    try {
      const answer = await fetch(url, { ...options, signal: AbortSignal.timeout(PATIENCE) });
      if (answer.status >= 500 || PASSING.includes(answer.status)) throw new Trouble("unreachable");
      if (answer.redirected || answer.status === 401) throw new Trouble("signed-out");
      if (answer.status === 404) throw new Trouble("gone");
      return { status: answer.status, text: await answer.text() };
    } catch (trouble) {
      throw trouble instanceof Trouble ? trouble : new Trouble("unreachable");
    }
  };

  const text = async (url) => (await reach(url, { headers: { Accept: "text/html, text/plain" } })).text;
  const page = async (url) => new DOMParser().parseFromString(await text(url), "text/html");

  // The counts as they are now. They carry whose they are, and a token that is good for posting.
  const freshCounts = async () => {
    const fresh = (await page(desk().counts)).getElementById("judge-counts");
    if (!fresh) throw new Trouble("signed-out");
    if (fresh.dataset.user !== desk().user) throw new Trouble("someone-else");
    return fresh;
  };

  const post = async (url, fields, { mayRenew = true } = {}) => {
    const body = new URLSearchParams(fields);
    body.set("csrfmiddlewaretoken", token());
    const headers = { Accept: "application/json" };
    const keepalive = String(body).length < SMALL;
    const { status, text: said } = await reach(url, { method: "POST", body, headers, keepalive });
    if (status === 403) {
      // Signing in again made the page's token stale. If it is the same person, take a new one.
      if (!mayRenew) throw new Trouble("stale");
      const fresh = (await freshCounts()).querySelector("[name=csrfmiddlewaretoken]").value;
      for (const old of document.querySelectorAll("[name=csrfmiddlewaretoken]")) old.value = fresh;
      return post(url, fields, { mayRenew: false });
    }
    if (!said) return { status, data: {} };
    try {
      return { status, data: JSON.parse(said) };
    } catch {
      if (status >= 400) return { status, data: {} }; // refused, in no words of ours
      throw new Trouble("signed-out");
    }
  };

  return { post, text, page, freshCounts };
})();
