// The judging page at work: one card before the person, the next one already here, verdicts into
// the outbox. Time counts from when a card is shown, while the page can be seen. Without this file
// the same forms work, one page a verdict; a card that belongs to another page is left alone.
const judging = (() => {
  const LIT = 50; // ms that the pressed button is seen before the next card comes
  const DOUBLE = 400; // ms after a verdict in which another click is the second of a double click
  const PATIENT = 150; // ms before "One moment" replaces a card that was judged
  const MINUTE = 60 * 1000;
  const LOOK_AGAIN = 30 * 1000;
  const TRY_AGAIN = 3 * 1000;
  const KEEP_DRAFT = 1500; // ms after the last change

  const words = document.getElementById("judge-desk").dataset; // addresses and words
  let current = null; // {element, lease, spent}: the card before the person
  let next = null; // the one that comes after it
  let asking = null; // the promise of another card, while one is asked for
  let returning = null; // the promise that one was given back
  let turn = 0; // counts cards shown: what was asked for an earlier turn is not shown
  let since = null; // when time began to count
  let lastSent = -Infinity; // when the last verdict was taken
  let pointed = false; // whether the last press came from a pointer
  let focusOwed = false; // whether the focus was in a card that went
  let undoing = false;
  let receipt = { text: "", tone: "" };
  let draftTimer = 0;
  let draftDirty = false;

  // A card of another page (judging again): it is sent as any form is, and nothing comes after it.
  const elsewhere = () => fields.form()?.getAttribute("action") !== words.judge;
  const shown = () => document.getElementById("comparison");
  const tokens = () => [current, next].filter(Boolean).map((card) => ["lease", card.lease]);

  // --- Words --------------------------------------------------------------------------------
  const showReceipt = () => {
    const line = shown().querySelector("[data-receipt]");
    if (line) Object.assign(line, { textContent: receipt.text }).dataset.tone = receipt.tone;
  };

  const say = (text, tone = "") => {
    receipt = { text, tone };
    showReceipt();
  };

  const sayTrouble = (kind) => say(kind === "unreachable" ? words.wordUnreachable : troubleIn(kind), "warning");

  const troubleIn = (kind) =>
    ({
      "signed-out": words.wordSignedOut,
      "someone-else": words.wordSomeoneElse,
      stale: words.wordStale,
      gone: words.wordGone,
    })[kind];

  const showWaiting = () => {
    const line = document.getElementById("judge-waiting");
    const number = outbox.size();
    const waits = number === 1 ? words.wordOneWaits : words.wordManyWait.replace("%n", number);
    line.hidden = !number || !outbox.trouble;
    line.querySelector("[data-text]").textContent = troubleIn(outbox.trouble) ?? waits;
    line.querySelector("[data-sign-in]").hidden = !["signed-out", "someone-else"].includes(outbox.trouble);
    const moment = shown().querySelector("[data-when-back]");
    if (moment) moment.hidden = outbox.trouble !== "unreachable";
  };

  // --- Time ---------------------------------------------------------------------------------
  const tick = () => {
    const now = performance.now();
    if (since !== null && current) current.spent += now - since;
    since = document.hidden ? null : now;
  };

  // --- Counts -------------------------------------------------------------------------------
  const count = (changes) => {
    for (const [name, by] of Object.entries(changes)) {
      const element = document.querySelector(`#judge-counts [data-count=${name}]`);
      if (!element) continue; // not known yet, or too many to count
      const number = Math.max(0, Number(element.textContent.replace(/\D/g, "")) + by);
      element.textContent = String(number).replace(/\B(?=(\d{3})+$)/g, "\u2009");
    }
  };

  const recount = async () => {
    const asked = lastSent;
    try {
      await Promise.all([asking, returning]); // else what changes hands may be counted twice
      const fresh = await server.freshCounts();
      if (asked === lastSent && !outbox.size()) document.getElementById("judge-counts").replaceWith(fresh);
      else outbox.empty().then(recount); // something was judged meanwhile
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble; // else the next minute will tell
    }
  };

  // --- Cards --------------------------------------------------------------------------------
  const cardOf = (element) => ({ element, lease: element.dataset.lease, spent: 0, fresh: true });

  const spentOn = (draft) => Number(draft?.active_ms) || 0;

  const parse = (html) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    return cardOf(document.adoptNode(page.getElementById("comparison")));
  };

  const swap = (element) => {
    const old = shown();
    focusOwed ||= old !== element && old.contains(document.activeElement);
    if (old !== element) old.replaceWith(element);
    window.htmx?.process(element);
    const first = element.querySelector("#place-A, .nothing-left h2");
    if (focusOwed && first) {
      first.focus({ preventScroll: true });
      focusOwed = false;
    }
    setTimeout(showReceipt); // once it is there: what changes in a status is read aloud
    document.dispatchEvent(new CustomEvent("judge:shown", { detail: element }));
  };

  const show = (card, { arrives = true } = {}) => {
    tick();
    turn += 1;
    current = card;
    for (const lit of card.element.querySelectorAll(".chosen")) lit.classList.remove("chosen");
    if (arrives) scrollTo(0, 0);
    card.element.classList.toggle("arrives", arrives);
    swap(card.element);
    if (card.fresh) {
      card.fresh = false;
      const kept = JSON.parse(card.element.querySelector("#judge-draft").textContent) || {};
      const left = leftBehind(card.lease);
      const draft = spentOn(left) > spentOn(kept) ? left : kept;
      card.spent = spentOn(draft);
      fields.fill(draft);
    } else fields.begin();
    draftDirty = false;
    prefetch();
  };

  const showTemplate = (id) => {
    const element = document.getElementById(id).content.firstElementChild.cloneNode(true);
    swap(element);
    return element;
  };

  const nothingShown = () => shown().querySelector(".nothing-left");

  const showNothing = (said) => {
    tick();
    current = null;
    const element = nothingShown() ?? showTemplate("judge-nothing");
    if (said) element.querySelector("[data-reason]").textContent = said;
  };

  // Another card for this person, besides those that the page has: {card} or {said}.
  const ask = () => {
    asking ??= server
      .post(words.next, tokens())
      .then(({ data }) => (data.card ? { card: parse(data.card) } : { said: data.said }))
      .finally(() => (asking = null));
    return asking;
  };

  // Only once the server has all verdicts: else it would offer what was judged just now.
  const prefetch = async () => {
    const mine = turn;
    await outbox.empty();
    if (mine !== turn || next || asking || !current || elsewhere()) return;
    try {
      const { card } = await ask();
      // The one before the person comes back where their hold on it had run out: it has not now.
      if (!card || card.lease === current?.lease || card.lease === next?.lease) return;
      if (next) giveBack(card); // undo has filled the place meanwhile
      else next = card;
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble; // else it is asked for when it is needed
    }
  };

  // What a judged card makes room for. Where no other is here, the server is asked once it has
  // all verdicts, for as long as it takes.
  const advance = async () => {
    const mine = ++turn;
    current = null;
    if (asking) await asking.catch(() => null);
    if (mine !== turn) return;
    if (next) {
      const card = next;
      next = null;
      return show(card);
    }
    const moment = setTimeout(() => {
      if (mine !== turn || nothingShown()) return;
      showTemplate("judge-moment");
      showWaiting();
    }, PATIENT);
    let found = null;
    while (!found) {
      await outbox.empty();
      if (mine !== turn) break;
      found = await ask().catch(async (trouble) => {
        if (!(trouble instanceof Trouble)) throw trouble;
        sayTrouble(trouble.kind);
        await new Promise((resolve) => setTimeout(resolve, TRY_AGAIN));
      });
    }
    clearTimeout(moment);
    if (!found) return;
    if (mine !== turn) next ??= found.card ?? null;
    else if (found.card) show(found.card);
    else showNothing(found.said);
  };

  const giveBack = (card) => {
    returning = server.post(words.giveBack, [["lease", card.lease]]).catch(() => null);
  };

  // Put a card before the person again; the one that they have comes after it, as it is.
  const putBefore = (card) => {
    tick();
    if (next) giveBack(next);
    next = current;
    show(card);
  };

  // --- Verdicts -----------------------------------------------------------------------------
  // The second half of a double click is no verdict on the card that came in between.
  const doubled = () => pointed && performance.now() - lastSent < DOUBLE;

  const verdictOf = (form, submitter) => {
    const data = { ...fields.read(), lease: current.lease, key: form.elements.key.value };
    data.active_ms = String(Math.round(current.spent));
    if (!fields.chosen() && submitter?.name === "choice") data.choice = submitter.value;
    data.guidelines = form.elements.guidelines.value;
    if (form.elements.confirmed.value) data.confirmed = form.elements.confirmed.value;
    return data;
  };

  const showError = (text) => {
    const line = fields.form().querySelector("[data-error]");
    line.setAttribute("role", "alert");
    line.textContent = text;
  };

  const hidden = (name, value) =>
    Object.assign(document.createElement("input"), { type: "hidden", name, value });

  // Whether the person has to say again that they mean the order in which they were shown.
  const mustConfirm = (form, choice) => {
    if (choice !== "ranking" || form.elements.confirmed.value || !ranking.asShown()) return false;
    form.elements.confirmed.value = "1";
    showError(words.wordInOrder);
    return true;
  };

  const submit = (form, submitter) => {
    tick();
    const skips = submitter?.getAttribute("formaction") === words.skip;
    const data = verdictOf(form, submitter);
    if (skips) {
      for (const name of Object.keys(data)) if (!/^(lease|key|flag_.*)$/.test(name)) delete data[name];
      if (submitter.dataset.panelKey && !data.flag_reason) return fields.named("flag_reason")[0].focus();
    } else if (!data.choice) return say(words.wordChoose);
    else if (data.choice === "ranking" && !ranking.complete()) return;
    else if (mustConfirm(form, data.choice)) return;
    lastSent = performance.now();
    clearTimeout(draftTimer);
    say("");
    submitter.classList.add("chosen");
    count(skips ? { left: -1 } : { today: 1, in_all: 1, left: -1 });
    const fieldsOf = Object.entries(data);
    outbox.put({ url: skips ? words.skip : words.judge, key: data.key, lease: data.lease, fields: fieldsOf });
    current = null;
    setTimeout(advance, LIT);
  };

  outbox.onchange = showWaiting;

  outbox.onsettled = (_entry, { status, data }) => {
    if (status === 200) return say(data.said, data.state === "surplus" ? "warning" : "");
    say(data.said ?? words.wordRefused, "warning");
    recount();
    bringBack();
  };

  // Verdicts that the server could not take: their cards again, as they were sent, with what is
  // wrong. They stay in storage until then.
  const bringBack = async () => {
    const [entry] = outbox.refused();
    if (!entry) return;
    try {
      const address = `${words.judge}?lease=${encodeURIComponent(entry.lease)}`;
      const element = (await server.page(address)).getElementById("comparison");
      outbox.drop(entry.name);
      if (element?.dataset.lease !== entry.lease) return;
      putBefore(cardOf(document.adoptNode(element)));
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      setTimeout(bringBack, TRY_AGAIN);
      return;
    }
    const sent = Object.fromEntries(entry.fields);
    fields.fill(sent);
    current.spent = Number(sent.active_ms) || 0;
    fields.form().elements.confirmed.value = entry.refused.errors?.confirmed ? "1" : "";
    showError(entry.refused.said ?? words.wordRefused);
  };

  const undo = async () => {
    if (undoing) return;
    if (outbox.size() && outbox.trouble) return sayTrouble(outbox.trouble);
    undoing = true;
    try {
      await outbox.empty();
      const { data } = await server.post(words.undo, []);
      if (data.card) putBefore(parse(data.card));
      say(data.said);
      recount();
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      sayTrouble(trouble.kind);
    } finally {
      undoing = false;
    }
  };

  document.addEventListener("click", (event) => (pointed = event.detail > 0), true);

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.getAttribute("action") === words.undo) {
      event.preventDefault();
      undo();
    } else if (form === fields.form() && elsewhere()) {
      tick();
      form.elements.active_ms.value = Math.round(current.spent);
      if (fields.chosen()) form.append(hidden("choice", fields.chosen()));
    } else if (form === fields.form()) {
      event.preventDefault();
      if (current && !doubled()) submit(form, event.submitter);
    }
  });

  // --- Drafts and leases --------------------------------------------------------------------
  const draft = () => {
    tick();
    return JSON.stringify({ ...fields.read(), active_ms: String(Math.round(current.spent)) });
  };

  // A reload may overtake the draft on its way to the server: this tab remembers it, too.
  const leave = (lease, text) => {
    try {
      sessionStorage.setItem("prefloop:draft", JSON.stringify({ lease, text }));
    } catch {
      // No room, or closed to us: the server's copy is the only one.
    }
  };

  const leftBehind = (lease) => {
    try {
      const left = JSON.parse(sessionStorage.getItem("prefloop:draft"));
      sessionStorage.removeItem("prefloop:draft");
      return left?.lease === lease ? JSON.parse(left.text) : null;
    } catch {
      return null;
    }
  };

  const hold = async ({ withDraft = draftDirty } = {}) => {
    clearTimeout(draftTimer);
    if (!current || elsewhere()) return;
    const asked = [current, next];
    draftDirty = false;
    try {
      const { status, data } = await server.post(words.hold, withDraft ? [...tokens(), ["draft", draft()]] : tokens());
      if (status !== 200) return;
      if (next && next === asked[1] && !data.held.includes(next.lease)) next = null;
      if (current === asked[0] && !data.held.includes(current.lease) && !current.lost) {
        current.lost = true;
        say(words.wordNotHeld, "warning");
      }
      prefetch();
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      draftDirty ||= withDraft; // the next beat takes it along
    }
  };

  for (const type of ["input", "change"]) {
    document.addEventListener(type, (event) => {
      if (!current || !fields.form()?.contains(event.target)) return;
      fields.form().elements.confirmed.value = "";
      showError("");
      draftDirty = true;
      clearTimeout(draftTimer);
      draftTimer = setTimeout(hold, KEEP_DRAFT);
    });
  }

  document.addEventListener("visibilitychange", () => {
    tick();
    if (!document.hidden || draftDirty) hold();
  });

  window.addEventListener("pagehide", () => {
    if (current && !elsewhere()) leave(current.lease, draft());
    hold({ withDraft: true });
    if (next) giveBack(next);
    next = null;
  });
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());

  setInterval(() => {
    if (document.hidden) return;
    hold();
    if (document.getElementById("judge-counts")) recount();
  }, MINUTE);

  setInterval(() => {
    if (!document.hidden && !current && nothingShown()) advance();
  }, LOOK_AGAIN);

  // --- The first card -----------------------------------------------------------------------
  window.addEventListener("DOMContentLoaded", () => {
    const card = cardOf(shown());
    const judged = card.lease && outbox.has(card.lease);
    if (judged) advance(); // by this page, before it was closed: it is on its way
    else if (card.lease) show(card, { arrives: false });
    else swap(card.element);
    if (!elsewhere()) bringBack();
    if (document.getElementById("judge-counts")) outbox.empty().then(recount);
  });

  return { say, sayTrouble, words };
})();
