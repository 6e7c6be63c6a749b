// Fields for a key: go there and press it. Tab and Escape stay what they are, as do all keys
// together with Ctrl, Alt or Meta. What no keyboard event names is typed as everywhere else.
const form = document.querySelector("form[data-keys]");
const named = new Set(form.dataset.keys.split(" "));

const nameOf = (event) => {
  const key = event.key === " " ? "space" : event.key.toLowerCase();
  return named.has(key) || [...event.key].length === 1 ? key : null;
};

form.addEventListener("focusin", (event) => {
  if (event.target.matches(".key-input")) event.target.select();
});

form.addEventListener("keydown", (event) => {
  const field = event.target;
  if (!field.matches(".key-input") || event.isComposing) return;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const key = nameOf(event);
  if (key === null) return;
  event.preventDefault();
  field.value = key;
  field.select();
});
