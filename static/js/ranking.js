// Ranking three or more: picks in order of preference. The selects in the form hold the result,
// so that what is sent is what a page without scripts would send.
const ranking = (() => {
  let tiers = []; // of letters, best first
  let tie = false; // the next pick ties with the last
  const fingers = matchMedia("(pointer: coarse)");

  const box = () => document.querySelector("[data-ranking]");
  const letters = () => [...document.querySelectorAll("[data-pick]")].map((button) => button.dataset.pick);
  const placed = () => tiers.flat();

  const sentence = () => {
    const text = tiers.map((tier) => tier.join(" = ")).join(" over ");
    if (!text) return fingers.matches ? "Tap the answers, best first." : `Press 1 to ${letters().length}, best first.`;
    if (tie) return `${text} = …`;
    return placed().length < letters().length ? `${text} over …` : text;
  };

  const show = () => {
    const complete = placed().length === letters().length;
    document.querySelector("[data-sentence]").textContent = sentence();
    for (const letter of letters()) {
      const tier = tiers.findIndex((members) => members.includes(letter));
      document.querySelector(`[data-place-of="${letter}"]`).value = tier < 0 ? "" : String(tier + 1);
      document.getElementById(`place-${letter}`).classList.toggle("ranked", tier >= 0);
      for (const mark of document.querySelectorAll(`[data-rank="${letter}"]`)) {
        mark.textContent = tier < 0 ? "" : `Place ${tier + 1}`;
      }
    }
    document.querySelector("[data-tie]").setAttribute("aria-pressed", String(tie));
    document.querySelector("[data-tie]").disabled = !tiers.length || complete;
    document.querySelector("[data-take-back]").disabled = !tiers.length;
    document.querySelector("[data-send]").disabled = !complete;
  };

  const remove = (letter) => {
    tiers = tiers.map((tier) => tier.filter((one) => one !== letter)).filter((tier) => tier.length);
    tie = false;
  };

  const pick = (letter) => {
    if (placed().includes(letter)) remove(letter);
    else if (tie) tiers.at(-1).push(letter);
    else tiers.push([letter]);
    tie = false;
    show();
  };

  const takeBack = () => {
    if (tie) tie = false;
    else if (tiers.length) remove(tiers.at(-1).at(-1));
    show();
  };

  document.addEventListener("click", (event) => {
    if (!box()) return;
    if (event.target.closest("[data-tie]")) {
      tie = !tie;
      show();
    } else if (event.target.closest("[data-take-back]")) takeBack();
    else {
      const place = event.target.closest(".place");
      const elsewhere = event.target.closest("a, button:not([data-pick])");
      // Selecting words in an answer is not a pick.
      if (place && !elsewhere && getSelection().isCollapsed) pick(place.dataset.place);
    }
  });

  return {
    begin() {
      tiers = [];
      tie = false;
      if (box()) show();
    },
    // The button a key stands for: a digit or letter of a place that is there.
    pickButton(key) {
      const letter = /^[1-9]$/.test(key) ? letters()[Number(key) - 1] : key.toUpperCase();
      return letters().includes(letter) ? document.querySelector(`[data-pick="${letter}"]`) : null;
    },
  };
})();
