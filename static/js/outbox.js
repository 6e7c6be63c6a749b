// Verdicts on their way. Each lies in the browser's storage from the press until the server has
// answered it, in order: a line that drops, a page that is closed and a server that is down lose
// none, and its key lets the server tell a second arrival. A name says whose it is and in which
// project, so that nobody sends what another person judged.
const outbox = (() => {
  const WAITS = [1, 2, 4, 8, 15]; // seconds between tries
  const SETTLED = [200, 409, 410]; // saved, said otherwise before, or not this person's any more
  const SLOW = 4 * 1000; // ms after which a person is told that something still waits
  const desk = document.getElementById("judge-desk")?.dataset ?? {};
  const prefix = `prefloop:outbox:${desk.user}:${desk.project}:`;
  const unstored = new Map(); // what the storage has no room for, or is closed to
  const idle = []; // who waits for an empty outbox
  let last = 0;
  let failures = 0;
  let timer = 0;
  let running = null;
  let asked = false; // for another go, while one is under way
  const box = { trouble: "", onsettled: () => {}, onchange: () => {} };

  const stored = () => {
    try {
      return Object.keys(localStorage).filter((name) => name.startsWith(prefix));
    } catch {
      return [];
    }
  };
  // A name begins with the time, all of one length, so that names sort as they were put in.
  const names = () => [...stored(), ...unstored.keys()].sort();

  const read = (name) => {
    try {
      return unstored.get(name) ?? JSON.parse(localStorage.getItem(name));
    } catch {
      return null;
    }
  };

  // What the server refused stays until its card is back before the person.
  const waiting = () => names().filter((name) => !read(name)?.refused);

  const write = (name, entry) => {
    try {
      localStorage.setItem(name, JSON.stringify(entry));
    } catch {
      unstored.set(name, entry);
    }
  };

  const remove = (name) => {
    if (!unstored.delete(name)) localStorage.removeItem(name);
  };

  const report = (trouble) => {
    box.trouble = trouble;
    box.onchange();
  };

  const trySending = async (name, entry) => {
    const slow = setTimeout(() => report("unreachable"), SLOW);
    try {
      return await server.post(entry.url, entry.fields);
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      report(trouble.kind);
      timer = setTimeout(box.flush, WAITS[Math.min(failures, WAITS.length - 1)] * 1000);
      failures += 1;
      return null;
    } finally {
      clearTimeout(slow);
    }
  };

  const sendAll = async () => {
    for (let [name] = waiting(); name; [name] = waiting()) {
      const entry = read(name);
      if (entry) {
        const answer = await trySending(name, entry);
        if (!answer) return;
        failures = 0;
        if (SETTLED.includes(answer.status)) remove(name);
        else write(name, { ...entry, refused: answer.data });
        report("");
        box.onsettled(entry, answer);
      } else remove(name);
    }
    report("");
    for (const resolve of idle.splice(0)) resolve();
  };

  // One tab sends at a time, where the browser can see to that; else the keys do.
  const alone = (work) => (navigator.locks ? navigator.locks.request(prefix, work) : work());

  box.size = () => waiting().length;
  box.has = (lease) => waiting().some((name) => read(name)?.lease === lease);
  box.refused = () => names().filter((name) => read(name)?.refused).map((name) => ({ name, ...read(name) }));
  box.drop = remove;

  box.flush = () => {
    asked = true;
    if (running) return;
    asked = false;
    clearTimeout(timer);
    running = Promise.resolve(alone(sendAll)).finally(() => {
      running = null;
      if (asked && box.size()) box.flush();
    });
  };

  box.put = (entry) => {
    last = Math.max(last + 1, Date.now());
    const name = `${prefix}${last}:${entry.key}`;
    write(name, entry);
    box.flush();
    box.onchange();
  };

  box.empty = () => {
    if (!box.size()) return Promise.resolve();
    const emptied = new Promise((resolve) => idle.push(resolve));
    box.flush();
    return emptied;
  };

  const flushIfAny = () => {
    if (box.size()) box.flush();
  };
  window.addEventListener("online", flushIfAny);
  window.addEventListener("beforeunload", (event) => unstored.size && event.preventDefault());
  document.addEventListener("visibilitychange", () => document.hidden || flushIfAny());
  window.addEventListener("storage", () => box.onchange()); // another tab sent or put something

  return box;
})();
