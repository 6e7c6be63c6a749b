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
  button.textContent = shown ? button.dataset.show : button.dataset.hide;
});

// On a phone the project's pages do not fit beside each other: the open one is in view.
document.querySelector(".site-nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

// Words for a request that did not come through. The page stays as it was.
const lost = document.getElementById("request-lost");

const tell = (text) => {
  lost.textContent = text;
  lost.hidden = false;
};

document.addEventListener("htmx:sendError", () => tell(lost.dataset.unreachable));
document.addEventListener("htmx:timeout", () => tell(lost.dataset.slow));
document.addEventListener("htmx:responseError", (event) => {
  const why = { 403: "stale", 404: "gone" }[event.detail.xhr.status] ?? "failed";
  tell(lost.dataset[why]);
});
document.addEventListener("htmx:afterOnLoad", () => {
  lost.hidden = true;
});
