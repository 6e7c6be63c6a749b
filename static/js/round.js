// A new round: options that mean nothing with what is chosen are put away, and not sent; what the
// round would come to is kept beside the form. Without this script buttons do the same.
const form = document.querySelector("[data-round-options]");
const conditional = [...form.querySelectorAll("[data-only]")];
const start = form.querySelector("[data-start]");

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

for (const button of document.querySelectorAll("[data-without-script]")) button.hidden = true;
for (const select of document.querySelectorAll("[data-sends]")) {
  select.addEventListener("change", () => select.form.requestSubmit());
}

// The outlook comes anew with each change: what was unfolded stays so, and the button follows it.
let unfolded = false;
document.addEventListener("htmx:beforeSwap", (event) => {
  unfolded = event.detail.target.querySelector("[data-keeps-open]")?.open ?? false;
});
document.addEventListener("htmx:afterSwap", () => {
  const outlook = document.getElementById("outlook");
  const fold = outlook.querySelector("[data-keeps-open]");
  if (fold) fold.open = unfolded;
  start.disabled = outlook.dataset.blocked === "yes";
});
