// How texts are read: formulas, folds, raw text, differences, scrolling, and the rest of long texts.
// Everything here is a view: it sends nothing, and nothing that a text says is ever taken for HTML
// (formulas go to KaTeX as text, without trust). A page without comparisons only has formulas.
const reading = (() => {
  const SLICE = 8; // ms at a stretch
  const ELEMENTS = 2000; // of one formula
  const PAGE = 60_000; // elements of all its formulas
  const DEPTH = 100; // elements within elements; about ten times as many make a browser give up
  const FORMULA = { trust: false, maxSize: 20, maxExpand: 500, throwOnError: false, errorColor: "inherit", strict: "ignore" };
  const narrow = matchMedia("(max-width: 48rem)");
  const known = new WeakSet(); // cards that have been begun
  let differing = false; // whether differences are wanted, on this card and those to come

  const body = document.body;
  const card = () => document.getElementById("comparison");
  const breath = () => new Promise((resolve) => setTimeout(resolve));
  const frame = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  const press = (action, on) => {
    for (const button of document.querySelectorAll(`[data-action="${action}"]`)) {
      button.setAttribute("aria-pressed", String(on));
    }
  };

  // --- Formulas -----------------------------------------------------------------------------
  // KaTeX gives a few of its elements a style attribute, which the page's policy forbids, where it
  // could have set their style, which the policy allows: so it is made to.
  const withStyles = (draw) => {
    const { setAttribute } = Element.prototype;
    Element.prototype.setAttribute = function (name, value) {
      if (name === "style") this.style.cssText = value;
      else setAttribute.call(this, name, value);
    };
    try {
      return draw();
    } finally {
      Element.prototype.setAttribute = setAttribute;
    }
  };

  const deep = (root) => {
    let level = [root];
    for (let depth = 0; level.length; depth += 1) {
      if (depth > DEPTH) return true;
      level = level.flatMap((element) => [...element.children]);
    }
    return false;
  };

  // A formula drawn apart from the page: a browser cannot lay out whatever KaTeX can draw. Null
  // where it is not LaTeX, or too much.
  const drawn = (element) => {
    const apart = document.createElement("span");
    const displayMode = element.matches(".displayed");
    try {
      withStyles(() => katex.render(element.textContent, apart, { ...FORMULA, displayMode }));
    } catch {
      return null;
    }
    return apart.getElementsByTagName("*").length > ELEMENTS || deep(apart) ? null : apart;
  };

  const typeset = async (root) => {
    if (!window.katex) return;
    let [began, since, left] = [performance.now(), 0, PAGE];
    for (const element of root.querySelectorAll(".math:not([data-typeset])")) {
      if (performance.now() - began > SLICE || since > ELEMENTS) {
        await breath();
        [began, since] = [performance.now(), 0];
      }
      if (element.matches("[data-typeset]")) continue; // meanwhile, by another call
      element.dataset.typeset = "";
      const formula = left > 0 && drawn(element);
      if (!formula) continue;
      const elements = formula.getElementsByTagName("*").length;
      since += elements;
      left -= elements;
      element.replaceChildren(...formula.childNodes);
    }
  };

  // What scrolls sideways is reached by keyboard, and only that.
  const openScrollers = (root) => {
    const wide = [...root.querySelectorAll(".prose :is(pre, .scrolls, .displayed)")].map((element) => [
      element,
      element.scrollWidth > element.clientWidth + 1,
    ]);
    for (const [element, scrolls] of wide) {
      if (scrolls) element.tabIndex = 0;
      else element.removeAttribute("tabindex");
    }
  };

  const prepare = async (root) => {
    await typeset(root);
    openScrollers(root);
  };

  // --- The prompt ---------------------------------------------------------------------------
  const fold = (text) => {
    text.classList.add("folded");
    const needed = text.scrollHeight > text.clientHeight + 4;
    text.classList.toggle("folded", needed);
    text.parentElement.querySelector("[data-action=unfold]").hidden = !needed;
  };

  const unfold = (button) => {
    const folded = button.parentElement.querySelector("[data-folds]").classList.toggle("folded");
    button.dataset.whole ??= button.textContent;
    button.textContent = folded ? button.dataset.whole : button.dataset.less;
    button.setAttribute("aria-expanded", String(!folded));
  };

  // --- Places: which fit, which is shown on a phone, and which scroll by themselves ---------
  const apart = () => body.classList.contains("scroll-apart");

  const stored = (value) => {
    try {
      return value === undefined ? localStorage.getItem("scroll") : localStorage.setItem("scroll", value);
    } catch {
      return null; // storage is closed to us: the choice lasts as long as the page
    }
  };

  const measure = () => {
    const verdict = document.querySelector(".verdict")?.offsetHeight ?? 0;
    const room = innerHeight - verdict - document.querySelector(".site-bar").offsetHeight;
    const fitting = [...document.querySelectorAll(".place")].map((place) => {
      const head = place.querySelector(".place-head").offsetHeight;
      const text = [...place.children].reduce((sum, part) => sum + part.offsetHeight, -head);
      return [place, text < room - 2 * head];
    });
    for (const [place, fits] of fitting) {
      place.classList.toggle("fits", fits);
      place.tabIndex = apart() || narrow.matches ? 0 : -1;
    }
  };

  const scrollApart = (on) => {
    body.classList.toggle("scroll-apart", on);
    press("scroll", on);
    measure();
  };

  const followSwitch = (element) => {
    const places = element.querySelector(".places");
    const links = [...element.querySelectorAll("[data-switch]")];
    const follow = () => {
      const shown = Math.round(Math.abs(places.scrollLeft) / places.clientWidth);
      links.forEach((link, index) => {
        if (index === shown) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
    };
    places.addEventListener("scroll", follow, { passive: true });
  };

  const turnTo = (letter) => {
    const places = card().querySelector(".places");
    places.scrollTo({ left: document.getElementById(`place-${letter}`).offsetLeft - places.offsetLeft });
  };

  // --- Raw text and differences -------------------------------------------------------------
  const showRaw = (on) => {
    body.classList.toggle("show-raw", on);
    press("raw", on);
    measure();
  };

  const say = (text, seen) => {
    const status = card().querySelector("[data-reading-status]");
    status.textContent = text;
    status.classList.toggle("visually-hidden", !seen);
  };

  const compare = async (element, tools) => {
    const against = tools.querySelector("[data-against]")?.value ?? element.querySelector(".place").dataset.place;
    if (element.dataset.against === against) return;
    const answer = await fetch(`${tools.dataset.differences}&against=${encodeURIComponent(against)}`);
    if (!answer.ok || answer.redirected) throw new TypeError(answer.statusText);
    const found = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const side of found.querySelectorAll("[data-of]")) {
      const place = element.querySelector(`[data-place="${side.dataset.of}"]`);
      place.querySelector(".differences")?.remove();
      place.append(document.adoptNode(side));
      await frame(); // thousands of marks take a while to lay out: one answer at a time
    }
    element.dataset.against = against;
  };

  const markDifferences = (tools) => {
    // Said before and after each mark to those who hear the page; CSS puts it there.
    for (const word of ["differs", "same"]) {
      body.style.setProperty(`--${word}`, JSON.stringify(` [${tools.dataset[word]}] `));
    }
    press("differences", differing);
    body.classList.toggle("show-differences", differing);
    const choice = tools.querySelector(".against");
    if (choice) choice.hidden = !differing;
  };

  const showDifferences = async (on) => {
    const element = card();
    const tools = element.querySelector("[data-differences]");
    differing = on;
    if (!tools) return;
    const { done, failed } = tools.querySelector("[data-reading-status]").dataset;
    markDifferences(tools);
    say("");
    if (on) {
      try {
        await compare(element, tools);
        if (element === card() && differing) say(done);
      } catch (error) {
        if (!(error instanceof TypeError)) throw error;
        if (element !== card()) return; // the next card has its own
        differing = false;
        markDifferences(tools);
        say(failed, true);
      }
    }
    if (element === card()) measure();
  };

  // --- Long texts ---------------------------------------------------------------------------
  const piece = (text) => {
    const element = document.createElement("pre");
    element.className = "raw piece";
    element.textContent = text;
    const lines = text.split("\n").reduce((sum, line) => sum + Math.ceil((line.length + 1) / 70), 0);
    element.style.containIntrinsicBlockSize = `auto ${Math.round(lines * 1.36)}em`;
    return element;
  };

  const unroll = async (link) => {
    if (link.ariaDisabled) return;
    const { href, dataset } = link;
    const focused = document.activeElement === link;
    link.ariaDisabled = "true";
    link.textContent = dataset.busy;
    let first = null;
    try {
      for (let from = dataset.rest; from && link.isConnected; from = dataset.rest) {
        const answer = await fetch(`${href}&from=${from}`);
        if (!answer.ok || answer.redirected) throw new TypeError(answer.statusText);
        const next = piece(await answer.text());
        link.parentElement.before(next);
        first ??= next;
        dataset.rest = answer.headers.get("X-Next-From") ?? "";
        await frame();
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      link.textContent = dataset.failed;
      link.ariaDisabled = null;
      return;
    }
    if (focused && first) {
      first.tabIndex = -1;
      first.focus({ preventScroll: true });
    }
    link.parentElement.remove();
    measure();
  };

  // --- Together -----------------------------------------------------------------------------
  const begin = (element) => {
    if (!element.querySelector(".places")) return;
    if (!known.has(element)) {
      known.add(element);
      for (const text of element.querySelectorAll("[data-folds]")) fold(text);
      followSwitch(element);
    }
    scrollApart(apart());
    showRaw(body.classList.contains("show-raw"));
    showDifferences(differing);
    prepare(element).then(measure);
  };

  document.addEventListener("click", (event) => {
    const at = (selector) => event.target.closest?.(selector);
    if (at("[data-action=raw]")) {
      showRaw(differing || !body.classList.contains("show-raw"));
      if (differing) showDifferences(false);
    } else if (at("[data-action=differences]")) showDifferences(!differing);
    else if (at("[data-action=scroll]")) {
      scrollApart(!apart());
      stored(apart() ? "apart" : "together");
    } else if (at("[data-action=unfold]")) unfold(at("[data-action=unfold]"));
    else if (at("[data-switch]")) {
      event.preventDefault();
      turnTo(at("[data-switch]").dataset.switch);
    } else if (at("[data-rest]") && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      unroll(at("[data-rest]"));
    }
  });

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-against]")) showDifferences(true);
  });

  document.addEventListener("judge:shown", (event) => begin(event.detail));
  // To the last of the earlier turns. Again and again: those near the window are
  // laid out only then, and grow.
  const toLastTurn = async (turns) => {
    for (let times = 0; times < 3; times += 1) {
      turns.scrollTop = turns.scrollHeight;
      await frame();
    }
  };

  document.addEventListener(
    "toggle",
    ({ target }) => {
      openScrollers(target);
      if (target.matches(".earlier[open]")) toLastTurn(target.querySelector(".turns"));
    },
    true,
  );
  window.addEventListener("resize", () => {
    measure();
    openScrollers(document);
  });

  body.classList.toggle("scroll-apart", stored() === "apart" && Boolean(document.querySelector(".judging")));
  window.addEventListener("DOMContentLoaded", () => {
    if (card()) begin(card());
    prepare(document);
  });

  return { begin };
})();
