// The judging page: keys press buttons, time counts while the page is looked at, leases stay alive.
// Everything works without this file; it only makes it quick.
const RENEW_EVERY = 2 * 60 * 1000; // ms; a lease lasts ten minutes

const form = () => document.getElementById("verdict");
const comparison = () => document.getElementById("comparison");

// --- Keys -----------------------------------------------------------------------------------
const typing = (target) => target.closest?.("input, textarea, select, [contenteditable]");
const openPopover = () => document.querySelector("[popover]:popover-open");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (typing(event.target)) return;
  const key = event.key.toLowerCase();
  const open = openPopover();
  if (open && !document.querySelector(`[popovertarget="${open.id}"][data-key="${CSS.escape(key)}"]`)) return;
  // Enter on a focused control is that control's own; on a picked answer it sends the ranking.
  if (key === "enter" && event.target.closest?.("button:not([data-pick]), a, summary")) return;
  if (event.repeat) return;
  const button = ranking.pickButton(key) ?? document.querySelector(`[data-key~="${CSS.escape(key)}"]`);
  if (!button || button.disabled) return;
  event.preventDefault();
  button.click();
});

// --- Time -----------------------------------------------------------------------------------
const clock = { spent: 0, since: document.hidden ? null : performance.now() };

const spent = () => clock.spent + (clock.since === null ? 0 : performance.now() - clock.since);
const restart = () => {
  clock.spent = 0;
  clock.since = document.hidden ? null : performance.now();
};

document.addEventListener("visibilitychange", () => {
  clock.spent = spent();
  clock.since = document.hidden ? null : performance.now();
});

// --- Sending --------------------------------------------------------------------------------
// In the capture phase, so that the time is in the form before htmx reads it.
document.addEventListener(
  "submit",
  (event) => {
    if (event.target === form()) form().elements.active_ms.value = Math.round(spent());
    event.submitter?.classList.add("chosen");
  },
  true,
);

for (const name of ["htmx:sendError", "htmx:timeout", "htmx:responseError"]) {
  document.addEventListener(name, () => {
    for (const button of document.querySelectorAll(".chosen")) button.classList.remove("chosen");
  });
}

setInterval(async () => {
  if (document.hidden || !form()) return;
  const data = new FormData();
  for (const name of ["lease", "csrfmiddlewaretoken"]) data.set(name, form().elements[name].value);
  await fetch(form().dataset.renew, { method: "POST", body: data }).catch(() => null);
}, RENEW_EVERY);

// --- Each comparison ------------------------------------------------------------------------
const fold = () => {
  const text = document.querySelector("[data-folds]");
  if (!text) return;
  text.classList.add("folded");
  const needed = text.scrollHeight > text.clientHeight + 4;
  text.classList.toggle("folded", needed);
  document.querySelector("[data-unfold]").hidden = !needed;
};

const markFitting = () => {
  const verdict = document.querySelector(".verdict");
  if (!verdict) return;
  for (const place of document.querySelectorAll(".place")) {
    const head = place.querySelector(".place-head").offsetHeight;
    const text = [...place.children].reduce((sum, part) => sum + part.offsetHeight, -head);
    const room = innerHeight - verdict.offsetHeight - document.querySelector(".site-bar").offsetHeight;
    place.classList.toggle("fits", text < room - head);
  }
};

window.addEventListener("resize", markFitting);

const followSwitch = () => {
  const places = document.querySelector(".places");
  if (!places) return;
  const links = [...document.querySelectorAll("[data-switch]")];
  places.addEventListener(
    "scroll",
    () => {
      const shown = Math.round(Math.abs(places.scrollLeft) / places.clientWidth);
      links.forEach((link, index) => {
        if (index === shown) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
    },
    { passive: true },
  );
};

const showRaw = (raw) => {
  document.body.classList.toggle("show-raw", raw);
  document.querySelector("[data-raw-toggle]")?.setAttribute("aria-pressed", String(raw));
  markFitting();
};

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-raw-toggle]")) showRaw(!document.body.classList.contains("show-raw"));

  const unfold = event.target.closest("[data-unfold]");
  if (unfold) {
    const folded = document.querySelector("[data-folds]").classList.toggle("folded");
    unfold.setAttribute("aria-expanded", String(!folded));
    unfold.textContent = folded ? "Show all" : "Show less";
  }

  const link = event.target.closest("[data-switch]");
  if (link) {
    event.preventDefault();
    const places = document.querySelector(".places");
    const place = document.getElementById(`place-${link.dataset.switch}`);
    places.scrollTo({ left: place.offsetLeft - places.offsetLeft });
  }
});

const begin = () => {
  restart();
  fold();
  followSwitch();
  showRaw(document.body.classList.contains("show-raw"));
  ranking.begin();
};

// Fired on what was swapped in; afterSwap would be fired on what is gone.
document.addEventListener("htmx:load", (event) => {
  if (event.detail.elt.id !== "comparison") return;
  comparison().classList.add("arrives");
  begin();
});

window.addEventListener("DOMContentLoaded", begin);
