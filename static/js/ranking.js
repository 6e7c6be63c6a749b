// Ranking three or more: picks in order of preference, by key, click or touch, and chips that are
// dragged. The selects in the form hold the result, so that what is sent (and kept as a draft) is
// what a page without scripts would send; the sentence above the chips always says it in words.
const ranking = (() => {
  const SLIP = 6; // px that a finger may move and still tap
  const AWAY = 70; // px from the chips, where a drop means never mind
  let tiers = []; // of letters, best first
  let tie = false; // the next pick ties with the last
  let drag = null; // {letter, chip, x, y, moved, drop}
  const fingers = matchMedia("(pointer: coarse)");

  const box = () => document.querySelector("[data-ranking]");
  const chips = () => document.querySelector("[data-chips]");
  const chipOf = (letter) => chips().querySelector(`[data-chip="${letter}"]`);
  const letters = () => [...document.querySelectorAll("[data-place-of]")].map((one) => one.dataset.placeOf);
  const placed = () => tiers.flat();
  const tierOf = (letter) => tiers.findIndex((tier) => tier.includes(letter));

  const sentence = () => {
    const { over, press, tap } = box().dataset;
    const text = tiers.map((tier) => tier.join(" = ")).join(over);
    if (!text) return fingers.matches ? tap : press;
    if (tie) return `${text} = …`;
    return placed().length < letters().length ? `${text}${over}…` : text;
  };

  const mark = (sign) => {
    const element = document.createElement("span");
    element.textContent = sign;
    element.setAttribute("aria-hidden", "true");
    return element;
  };

  const chip = (letter) => {
    const element = document.createElement("button");
    const place = tierOf(letter);
    element.type = "button";
    element.className = place < 0 ? "rank-chip" : "rank-chip placed";
    element.dataset.chip = letter;
    element.textContent = letter;
    if (place >= 0) element.setAttribute("aria-label", `${letter}: ${wordsFor(place)}`);
    return element;
  };

  const wordsFor = (place) => box().dataset.place.replace("%n", place + 1);

  const drawChips = () => {
    const focused = document.activeElement?.dataset.chip;
    const row = tiers.flatMap((tier, index) => [
      ...(index ? [mark(">")] : []),
      ...tier.flatMap((letter, at) => (at ? [mark("="), chip(letter)] : [chip(letter)])),
    ]);
    const rest = letters().filter((letter) => !placed().includes(letter));
    chips().replaceChildren(...row, ...(row.length && rest.length ? [mark("·")] : []), ...rest.map(chip));
    if (focused) chipOf(focused)?.focus();
  };

  const show = () => {
    const complete = placed().length === letters().length;
    document.querySelector("[data-sentence]").textContent = sentence();
    for (const letter of letters()) {
      const place = tierOf(letter);
      document.querySelector(`[data-place-of="${letter}"]`).value = place < 0 ? "" : String(place + 1);
      document.getElementById(`place-${letter}`).classList.toggle("ranked", place >= 0);
      for (const rank of document.querySelectorAll(`[data-rank="${letter}"]`)) {
        rank.textContent = place < 0 ? "" : rank.closest(".switch") ? place + 1 : wordsFor(place);
      }
    }
    document.querySelector("[data-tie]").setAttribute("aria-pressed", String(tie));
    document.querySelector("[data-tie]").disabled = !tiers.length || complete;
    document.querySelector("[data-take-back]").disabled = !tiers.length;
    drawChips();
  };

  const change = (...next) => {
    [tiers, tie] = next;
    show();
    box().dispatchEvent(new Event("change", { bubbles: true }));
  };

  const without = (letter) =>
    tiers.map((tier) => tier.filter((one) => one !== letter)).filter((tier) => tier.length);

  const pick = (letter) => {
    if (placed().includes(letter)) change(without(letter), false);
    else if (tie) change([...tiers.slice(0, -1), [...tiers.at(-1), letter]], false);
    else change([...tiers, [letter]], false);
  };

  const takeBack = () => change(tie ? tiers : without(tiers.at(-1)?.at(-1)), false);

  // The letter into the tier of another, or into one of its own before or after that.
  const put = (letter, how, other) => {
    const rest = without(letter);
    const at = rest.findIndex((tier) => tier.includes(other));
    if (at < 0) rest.push([letter]);
    else if (how === "tie") rest[at] = [...rest[at], letter].sort();
    else rest.splice(how === "before" ? at : at + 1, 0, [letter]);
    change(rest, false);
  };

  // One step earlier or later: out of a tie, or past the next tier.
  const step = (letter, by) => {
    const at = tierOf(letter);
    if (at < 0) return pick(letter);
    const together = tiers[at].find((one) => one !== letter);
    const other = together ?? tiers[at + by]?.[0];
    if (other) put(letter, by < 0 ? "before" : "after", other);
  };

  // --- Dragging -----------------------------------------------------------------------------
  const dropAt = (x, y) => {
    const area = chips().getBoundingClientRect();
    if (y < area.top - AWAY || y > area.bottom + AWAY) return null;
    const others = [...chips().querySelectorAll(".placed")].filter((one) => one !== drag.chip);
    const boxes = others.map((one) => ({ letter: one.dataset.chip, box: one.getBoundingClientRect() }));
    const far = ({ box: { left, right, top, bottom } }) =>
      Math.abs(x - (left + right) / 2) + 3 * Math.abs(y - (top + bottom) / 2);
    const nearest = boxes.sort((one, other) => far(one) - far(other))[0];
    if (!nearest) return { how: "after", letter: "" };
    const { left, width } = nearest.box;
    const share = (x - left) / width;
    if (share > 0.2 && share < 0.8) return { how: "tie", letter: nearest.letter };
    const rightToLeft = getComputedStyle(chips()).direction === "rtl";
    return { how: share < 0.5 !== rightToLeft ? "before" : "after", letter: nearest.letter };
  };

  const showDrop = () => {
    for (const one of chips().querySelectorAll("[data-drop]")) delete one.dataset.drop;
    if (drag?.drop?.letter) chipOf(drag.drop.letter).dataset.drop = drag.drop.how;
  };

  document.addEventListener("pointerdown", (event) => {
    const chip = event.target.closest("[data-chip]");
    if (!chip || event.button) return;
    chip.setPointerCapture(event.pointerId);
    drag = { letter: chip.dataset.chip, chip, x: event.clientX, y: event.clientY, moved: false };
  });

  document.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [right, down] = [event.clientX - drag.x, event.clientY - drag.y];
    drag.moved ||= Math.hypot(right, down) > SLIP;
    if (!drag.moved) return;
    drag.chip.classList.add("dragged");
    drag.chip.style.transform = `translate(${right}px, ${down}px)`;
    drag.drop = dropAt(event.clientX, event.clientY);
    showDrop();
  });

  const letGo = (event) => {
    if (!drag) return;
    const { letter, moved, drop } = drag;
    drag = null;
    if (!moved) return; // the click that follows is a pick
    if (event.type === "pointerup" && drop) put(letter, drop.how, drop.letter);
    else show();
  };
  document.addEventListener("pointerup", letGo);
  document.addEventListener("pointercancel", letGo);

  // --- Keys and clicks ----------------------------------------------------------------------
  document.addEventListener("keydown", (event) => {
    const letter = event.target.dataset?.chip;
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!letter || !by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
    step(letter, sideways && getComputedStyle(chips()).direction === "rtl" ? -by : by);
  });

  document.addEventListener("click", (event) => {
    if (!box()) return;
    const place = event.target.closest(".place");
    const chip = event.target.closest("[data-chip]");
    if (event.target.closest("[data-tie]")) {
      tie = !tie;
      show();
    } else if (event.target.closest("[data-take-back]")) takeBack();
    else if (chip) pick(chip.dataset.chip);
    else if (place) {
      // Selecting words in an answer, or following its links, is not a pick.
      const elsewhere = event.target.closest("a, summary, label, input, button:not([data-pick])");
      if (!elsewhere && getSelection().isCollapsed) pick(place.dataset.place);
    }
  });

  return {
    // From what the selects hold: nothing on a new card, the ranking so far on one that comes back.
    begin() {
      tiers = [];
      tie = false;
      if (!box()) return;
      for (const select of document.querySelectorAll("[data-place-of]")) {
        if (select.value) (tiers[Number(select.value) - 1] ??= []).push(select.dataset.placeOf);
      }
      tiers = tiers.filter(Boolean);
      show();
    },
    complete: () => placed().length === letters().length,
    asShown: () => tiers.length === letters().length && placed().join() === letters().join(),
    best: () => (tiers[0]?.length === 1 ? tiers[0][0] : ""),
    letters,
    // The button a key stands for: a digit or letter of a place that is there.
    pickButton(key) {
      const letter = /^[1-9]$/.test(key) ? letters()[Number(key) - 1] : key.toUpperCase();
      return letters().includes(letter) ? chipOf(letter) : null;
    },
  };
})();
