// The settings of a project: rows for criteria as they are needed, and a word before leaving
// changes behind. Without this script all rows are there, and everything else works the same.
const form = document.querySelector("[data-settings]");
const unsaved = form.querySelector("[data-unsaved]");
const addButton = form.querySelector("[data-add-criterion]");
const spare = [...form.querySelectorAll("[data-spare]")];
let changed = "changed" in form.dataset;

const show = () => {
  unsaved.hidden = !changed;
  addButton.hidden = !spare.length;
};

for (const row of spare) row.hidden = true;
show();

addButton.addEventListener("click", () => {
  const row = spare.shift();
  row.hidden = false;
  row.querySelector("input:not([type=hidden])").focus();
  show();
});

form.addEventListener("input", () => {
  changed = true;
  show();
});

form.addEventListener("submit", () => {
  changed = false;
});

addEventListener("beforeunload", (event) => {
  if (changed) event.preventDefault();
});
