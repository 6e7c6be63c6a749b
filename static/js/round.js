// A new round's options: those that mean nothing with what is chosen are put away, and not sent.
const form = document.querySelector("[data-round-options]");
const conditional = [...form.querySelectorAll("[data-only]")];

// data-only="objective=dpo ipo": the other option, and its values with which this one counts.
const counts = (option) => {
  const [name, values] = option.dataset.only.split("=");
  return values.split(" ").includes(form.elements[name].value);
};

const sort = () => {
  for (const option of conditional) {
    const idle = !counts(option) && !option.querySelector(".errorlist");
    option.hidden = idle;
    for (const control of option.querySelectorAll("input, select")) control.disabled = idle;
  }
};

form.dataset.sorted = "";
form.addEventListener("change", sort);
window.addEventListener("pageshow", sort); // the browser may have put earlier choices back
sort();

// A browser that refuses a value points at its field: it must not be folded away.
form.addEventListener("invalid", (event) => {
  const folded = event.target.closest("details");
  if (folded) folded.open = true;
}, true);
