// What goes with a verdict: the choice itself where a press only chooses, ratings, reason, flag and
// rewrite. They are plain fields of the form; this opens and folds them, reads them and fills them.
const fields = (() => {
  const NEVER_KEPT = ["csrfmiddlewaretoken", "lease", "key", "confirmed", "active_ms"];

  const narrow = matchMedia("(max-width: 48rem)");

  const form = () => document.getElementById("verdict");
  const extra = (name) => form().querySelector(`[data-extra="${name}"]`);
  const named = (name) => [...form().elements].filter((one) => one.name === name);
  const checked = (name) => named(name).find((one) => one.checked);

  // --- The choice ---------------------------------------------------------------------------
  const choices = () => named("choice").filter((one) => !("send" in one.dataset));
  const chosen = () => choices().find((one) => one.getAttribute("aria-pressed") === "true")?.value ?? "";
  const confirms = () => form().hasAttribute("data-confirms");

  const choose = (value) => {
    if (!confirms()) return;
    for (const one of choices()) one.setAttribute("aria-pressed", String(one.value === value));
  };

  // --- Opening and folding ------------------------------------------------------------------
  const open = (name) => {
    const block = extra(name);
    block.open = true;
    const first = block.querySelector("textarea, input");
    if (name === "rewrite") beginRewrite();
    else (checked(first.name) ?? first).focus();
  };

  const fold = (name) => {
    extra(name).open = false;
    form().querySelector(":focus")?.blur();
    mark();
  };

  const cancel = (name) => {
    for (const one of extra(name).querySelectorAll("input, textarea")) {
      if (one.type === "radio") one.checked = one.value === "";
      else one.value = "";
      begun.delete(one);
    }
    fold(name);
    form().dispatchEvent(new Event("change", { bubbles: true }));
  };

  // What is open, what is filled in, and the flag in words while its block is folded.
  const mark = () => {
    const filled = read();
    for (const opener of document.querySelectorAll("[data-opens]")) {
      const name = opener.dataset.opens;
      const names = { reason: "rationale", flag: "flag_reason", rewrite: "rewrite_text" };
      opener.setAttribute("aria-expanded", String(extra(name).open));
      opener.toggleAttribute("data-filled", Boolean(filled[names[name]]));
    }
    const send = form().querySelector("[data-send]");
    if (send) send.disabled = !ranking.complete() && !chosen();
    const rated = form().querySelector("[data-rated]");
    if (rated) rated.textContent = `${form().querySelectorAll(".rate :checked").length}/${form().querySelectorAll(".rate").length}`;
    const chip = form().querySelector("[data-flag-chip]");
    if (!chip) return;
    chip.hidden = !filled.flag_reason || extra("flag").open;
    const words = (name) => checked(name)?.labels[0].querySelector("span").firstChild.data.trim();
    chip.querySelector("[data-text]").textContent = `${words("flag_reason")} · ${words("flag_place")}`;
  };

  // --- Rewriting ----------------------------------------------------------------------------
  // What an answer says, as it was written. Of a long one the page may have the beginning only.
  const original = (letter) => document.querySelector(`#place-${letter} .raw`).textContent;
  const whole = async (letter) => {
    const rest = document.querySelector(`#place-${letter} [data-rest]`);
    return rest ? server.text(rest.href) : original(letter);
  };
  const begun = new WeakMap(); // what was made of each answer, by its radio button
  const taken = new WeakMap(); // and what it was made from
  let source = null; // the radio button whose answer is in the textarea

  const takeSource = async (radio) => {
    const text = named("rewrite_text")[0];
    if (source?.isConnected && text.value) begun.set(source, text.value);
    source = radio;
    text.value = "";
    try {
      if (!taken.has(radio)) taken.set(radio, await whole(radio.value));
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      radio.checked = false;
      return judging.sayTrouble(trouble.kind);
    }
    if (source !== radio || !text.isConnected) return;
    text.value = begun.get(radio) ?? taken.get(radio);
    text.focus();
    text.setSelectionRange(0, 0);
    text.scrollTop = 0;
  };

  const better = () => {
    if (form().querySelector("[data-ranking]")) return ranking.best();
    return { 1: "A", 2: "A", 3: "A", 5: "B", 6: "B", 7: "B" }[chosen()] ?? "";
  };

  const beginRewrite = () => {
    const text = named("rewrite_text")[0];
    if (text.value) return text.focus();
    const radio = named("rewrite_place").find((one) => one.value === better());
    if (!radio) return named("rewrite_place")[0].focus();
    radio.checked = true;
    takeSource(radio);
  };

  // --- Reading and filling ------------------------------------------------------------------
  const read = () => {
    const data = {};
    for (const [name, value] of new FormData(form())) {
      if (value && !NEVER_KEPT.includes(name)) data[name] = value;
    }
    if (!data.flag_reason) for (const name of ["flag_place", "flag_note"]) delete data[name];
    const { rewrite_place: of, rewrite_text: text } = data;
    if (!of || !text?.trim() || text === (taken.get(checked("rewrite_place")) ?? original(of))) {
      for (const name of ["rewrite_place", "rewrite_text"]) delete data[name];
    }
    if (chosen()) data.choice = chosen();
    return data;
  };

  const fill = (data) => {
    for (const [name, value] of Object.entries(data)) {
      if (NEVER_KEPT.includes(name)) continue;
      for (const one of named(name)) {
        if (one.type === "radio") one.checked = one.value === value;
        else if (one.type !== "submit") one.value = value;
      }
    }
    choose(data.choice ?? "");
    const ratings = form().querySelector("[data-ratings]");
    if (ratings && narrow.matches) ratings.open = false; // the answers need the room
    if (data.rationale && extra("reason")) extra("reason").open = true;
    if (data.rewrite_text && extra("rewrite")) extra("rewrite").open = true;
    if (extra("flag")) extra("flag").open = false; // what it says is told in a line
    begin();
  };

  // A card before the person: on from whatever its fields hold.
  const begin = () => {
    source = checked("rewrite_place") ?? null;
    ranking.begin();
    mark();
  };

  // --- Events -------------------------------------------------------------------------------
  document.addEventListener("click", (event) => {
    if (!form()) return;
    const opener = event.target.closest("[data-opens]");
    const canceller = event.target.closest("[data-cancel]");
    const step = event.target.closest("[name=choice]");
    const more = event.target.closest("[data-more]");
    if (opener) {
      // A second click folds; the key goes (back) into the field, which Escape leaves.
      if (event.detail && extra(opener.dataset.opens).open) fold(opener.dataset.opens);
      else open(opener.dataset.opens);
    } else if (canceller) cancel(canceller.dataset.cancel);
    else if (event.target.closest("[data-keep-flag]")) {
      if (checked("flag_reason")) fold("flag");
      else named("flag_reason")[0].focus();
    } else if (step && confirms() && choices().includes(step)) {
      event.preventDefault();
      // Only "all bad" is taken back by a second press: a ranking may stand instead.
      choose(chosen() === step.value && form().querySelector("[data-ranking]") ? "" : step.value);
      form().dispatchEvent(new Event("change", { bubbles: true }));
    } else if (more) {
      const wide = document.getElementById(more.getAttribute("aria-controls"));
      more.setAttribute("aria-expanded", String(wide.classList.toggle("open")));
    }
  });

  document.addEventListener("change", (event) => {
    if (event.target.name === "rewrite_place") takeSource(event.target);
  });
  for (const type of ["input", "change"]) {
    document.addEventListener(type, (event) => form()?.contains(event.target) && mark());
  }
  document.addEventListener("toggle", (event) => event.target.matches?.("[data-extra]") && mark(), true);
  // The browser points at a field that it wants filled in: it must not be folded away.
  document.addEventListener("invalid", (event) => event.target.closest("[data-extra]")?.setAttribute("open", ""), true);

  return { form, read, fill, begin, cancel, chosen, confirms, checked, named, extra };
})();
