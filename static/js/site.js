// What every page needs: menus that close, times that stay true, and word of failed requests.
const closeMenus = (except) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (menu !== except) menu.open = false;
  }
};

document.addEventListener("click", (event) => closeMenus(event.target.closest("details.menu")));

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const open = document.querySelector("details.menu[open]");
  closeMenus();
  open?.querySelector("summary").focus();
});

// Show or hide a password.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-reveals]");
  if (!button) return;
  const field = document.getElementById(button.dataset.reveals);
  const shown = field.type === "text";
  field.type = shown ? "password" : "text";
  button.setAttribute("aria-pressed", String(!shown));
  button.textContent = shown ? "Show" : "Hide";
});

// Words for a request that did not come through. The page stays as it was.
const lost = document.getElementById("request-lost");

const tell = (text) => {
  lost.textContent = text;
  lost.hidden = false;
};

document.addEventListener("htmx:sendError", () =>
  tell("The server could not be reached. Nothing was lost: try again in a moment."),
);
document.addEventListener("htmx:timeout", () =>
  tell("The server took too long to answer. Nothing was lost: try again in a moment."),
);
document.addEventListener("htmx:responseError", (event) => {
  const status = event.detail.xhr.status;
  if (status === 403) tell("This page is out of date. Reload it and try again.");
  else if (status === 404) tell("This is no longer there for you. Reload the page.");
  else tell(`The server failed (${status}). Nothing was lost: try again in a moment.`);
});
document.addEventListener("htmx:afterOnLoad", () => {
  lost.hidden = true;
});
