// Keys press buttons. Which key is whose comes with the page; a button names its actions, and the
// key is written on it and in the help, so that what is shown is what works. What is typed into a
// field is text: keys wait until it is left.
(() => {
  const keyOf = JSON.parse(document.getElementById("judge-keys").textContent) || {};
  const actionOf = Object.fromEntries(Object.entries(keyOf).map(([action, key]) => [key, action]));
  const SIGNS = { enter: "↵", backspace: "⌫", delete: "⌦", space: "␣", arrowleft: "←", arrowright: "→" };
  const NO_TEXT = ["radio", "checkbox", "button", "submit"];

  const typing = (target) =>
    target.closest?.("textarea, select, [contenteditable]") ||
    (target.matches?.("input") && !NO_TEXT.includes(target.type));

  const buttonOf = (action) => document.querySelector(`[data-action~="${action}"]`);

  // The key as the keyboard types it; where that is no key of ours (a keyboard of another script,
  // digits above accented letters), the one that is in its place on a Latin keyboard.
  const pressed = (event) => {
    const key = event.key === " " ? "space" : event.key.toLowerCase();
    if (actionOf[key] || event.shiftKey) return key;
    return /^(?:Key|Digit)(.)$/.exec(event.code)?.[1].toLowerCase() ?? key;
  };

  const label = () => {
    const picks = ranking.letters();
    for (const element of document.querySelectorAll("[data-key-of]")) {
      const key = keyOf[element.dataset.keyOf.split(" ")[0]] ?? "";
      const taken = !element.closest("[popover]") && picks.includes(key.toUpperCase());
      element.textContent = taken ? "" : (SIGNS[key] ?? key.toUpperCase());
      element.hidden = taken;
    }
  };

  const leave = (event) => {
    if (document.querySelector("[popover]:popover-open")) return; // Escape closes that
    const flag = document.querySelector("[data-extra=flag]");
    const inFlag = flag?.open && (flag.contains(event.target) || !typing(event.target));
    if (inFlag) fields.cancel("flag");
    else if (fields.form()?.contains(event.target)) event.target.blur();
  };

  // While the flag is open it alone has the keys: digits choose a reason, letters an answer.
  const target = (key) => {
    const flag = document.querySelector("[data-extra=flag][open]");
    if (!flag) return ranking.pickButton(key) ?? buttonOf(actionOf[key]);
    const own = flag.querySelector(`[data-panel-key="${CSS.escape(key)}"]`);
    return own ?? (["flag", "help"].includes(actionOf[key]) ? buttonOf(actionOf[key]) : null);
  };

  const send = () => {
    const button = buttonOf("send");
    const chosen = fields.chosen() || button?.hasAttribute("data-send");
    if (button && chosen) button.click();
    else judging.say(judging.words.wordChoose);
  };

  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229 || event.defaultPrevented) return;
    if (event.key === "Escape") return leave(event);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) {
      if (fields.form()?.contains(event.target)) send();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = pressed(event);
    if (key === "enter" && event.target.matches?.("input") && fields.form()?.contains(event.target)) {
      event.preventDefault(); // never the form's first button
      const inFlag = event.target.closest("[data-extra=flag]");
      if (!event.repeat && (inFlag || !typing(event.target))) target(key)?.click();
      return;
    }
    if (event.repeat || typing(event.target)) return;
    if (event.shiftKey && /^\p{L}$/u.test(key)) return;
    const open = document.querySelector("[popover]:popover-open");
    const button = target(key);
    if (!button || button.disabled) return;
    if (open && button.getAttribute("popovertarget") !== open.id) return;
    // Enter and space on a focused control are that control's own; in a ranking Enter sends.
    const control = event.target.closest?.("button:not([data-pick], [data-chip]), a, summary");
    if (control && (key === "enter" || key === "space")) return;
    event.preventDefault();
    button.click();
    if (button.type === "radio") button.focus();
  });

  document.addEventListener("judge:shown", label);
  label();
})();
