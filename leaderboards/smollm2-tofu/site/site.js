// Sorting, filtering, choice of columns and comparison of two rows. Everything is in the page without this file; the
// state stands in the address after "#", so that a link shows what its sender saw.
"use strict";

const state = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");

function remember(key, value) {
  if (value) state.set(key, value);
  else state.delete(key);
  history.replaceState(null, "", state.size ? "#" + state : location.pathname + location.search);
}

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function valueOf(row, column) {
  const cell = row.cells[column];
  if (!cell || cell.colSpan > 1) return null;
  const text = (cell.dataset.value ?? cell.textContent).trim().toLowerCase();
  if (text === "" || text === "–") return null;
  if (cell.dataset.value === undefined) return text;
  const number = { "inf": Infinity, "-inf": -Infinity }[text] ?? Number(text);
  return Number.isNaN(number) ? null : number;
}

// What is missing stays last in both directions.
function compareValues(one, other, sign) {
  if (one === null || other === null) return (one === null) - (other === null);
  if (typeof one === "number" && typeof other === "number") return sign * (one < other ? -1 : one > other ? 1 : 0);
  return sign * String(one).localeCompare(String(other), undefined, { numeric: true });
}

// Hides what does not hold all words, and says how much is left; nothing without a word.
function keepMatching(elements, words, name) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const element of elements) {
    element.hidden = !wanted.every((word) => element.textContent.toLowerCase().includes(word));
    shown += !element.hidden;
  }
  return wanted.length ? shown + " of " + elements.length + " " + name : "";
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[table.tBodies.length - 1];
  const original = [...body.rows];

  function sort(column, direction) {
    heads.forEach((head, place) => {
      if (place === column && direction) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    });
    const sign = direction === "descending" ? -1 : 1;
    const rows = [...original];
    if (direction) rows.sort((a, b) => compareValues(valueOf(a, column), valueOf(b, column), sign));
    body.append(...rows);
    remember(table.id + ".sort", direction ? column + "." + direction : "");
  }

  heads.forEach((head, column) => {
    const button = make("button", { type: "button", "aria-label": "Sort by " + head.textContent.trim() }, "⇅");
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sort(column, now === "ascending" ? "descending" : now === "descending" ? "" : "ascending");
    });
    head.append(" ", button);
  });

  function filter(words) {
    count.textContent = keepMatching(original, words, "rows");
    remember(table.id + ".filter", words);
  }

  const field = make("input", { type: "search", placeholder: "method, needs, source" });
  const count = make("span", { role: "status" });
  field.addEventListener("input", () => filter(field.value));
  const tools = make("div", { class: "tools" }, make("label", {}, "Filter", field), count);
  (table.closest(".scroll") || table).before(tools);

  const words = state.get(table.id + ".filter") || "";
  if (words) { field.value = words; filter(words); }
  const [column, direction] = (state.get(table.id + ".sort") || "").split(".");
  if (heads[column] && ["ascending", "descending"].includes(direction)) sort(Number(column), direction);
}

// Which columns a reader chose works without this file; the address remembers it.
function remembered(fieldset) {
  const name = (fieldset.closest("section")?.id || "answers") + ".columns";
  const boxes = [...fieldset.querySelectorAll("input")];
  const chosen = (state.get(name) || "").split(".");
  for (const box of boxes) {
    if (chosen.includes(box.className)) box.checked = true;
    box.addEventListener("change", () => remember(name, boxes.filter((each) => each.checked).map((each) => each.className).join(".")));
  }
}

// -- two rows of a table beside each other --------------------------------------------------------------------------

const loaded = new Map();
const waiting = new Map();

// The sample files of cells call this; a page opened from a disk may load scripts, but not read files.
function unlearnbenchSamples(content) {
  arrived(content.cell, content.rows);
}

function arrived(key, content) {
  loaded.set(key, content);
  waiting.get(key)?.();
}

function samplesOf(cell) {
  return fetched(cell, "../samples/" + encodeURIComponent(cell) + ".js");
}

function fetched(key, address) {
  if (loaded.has(key)) return Promise.resolve(loaded.get(key));
  return new Promise((done) => {
    waiting.set(key, () => done(loaded.get(key)));
    const script = make("script", { src: address });
    script.addEventListener("error", () => done(null));
    document.head.append(script);
  });
}

// The pairs file of a table calls this.
function unlearnbenchPairs(content) {
  arrived(content.table, content);
}

function differences(name) {
  return fetched(name, "../samples/" + encodeURIComponent(name) + ".pairs.js");
}

function signed(value) {
  return (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(3);
}

// Score, forgetting and utility: the second row less the first, with the interval of resampled rows that both answered.
function pairedRows(content, a, b) {
  const found = content?.pairs[Math.min(a, b) + "." + Math.max(a, b)];
  const sign = a < b ? 1 : -1;
  return (found || []).map((each, place) => {
    if (!each) return make("tr", {}, make("th", { scope: "row" }, content.numbers[place]), make("td", { class: "number" }, "–"), make("td", {}, "not measured"));
    const [gap, one, other] = each.map((value) => sign * value);
    const [low, high] = [Math.min(one, other), Math.max(one, other)];
    const words = low > 0 ? "higher" : high < 0 ? "lower" : "cannot be told apart";
    return make("tr", {}, make("th", { scope: "row" }, content.numbers[place]),
      make("td", { class: "number" }, signed(gap), make("small", {}, signed(low) + " to " + signed(high))), make("td", {}, words));
  });
}

function comparable(table) {
  const heads = [...table.tHead.rows[0].cells].slice(1);
  if (heads.length < 2) return;
  const options = () => [make("option", { value: "" }, "–"), ...heads.map((head, place) => make("option", { value: place }, head.textContent))];
  const first = make("select", {}, ...options());
  const second = make("select", {}, ...options());
  const result = make("div", { role: "region", "aria-live": "polite", "aria-label": "Comparison" });

  async function compare() {
    const [a, b] = [first.value, second.value];
    remember(table.id + ".compare", a !== "" && b !== "" ? a + "." + b : "");
    result.replaceChildren();
    if (a === "" || b === "" || a === b) return;
    const names = [a, b].map((place) => heads[place].textContent);
    const rows = [...table.tBodies[0].rows].map((row) => {
      const cells = [a, b].map((place) => row.cells[Number(place) + 1]);
      const [one, other] = cells.map((cell) => Number(cell.textContent.replaceAll("−", "-").replace("–", "NaN").replace("∞", "Infinity")));
      const gap = other - one;
      const better = row.dataset.better === "target" || !gap ? "" : (gap > 0) === (row.dataset.better === "higher") ? "better" : "worse";
      const text = Number.isFinite(gap) ? ((gap > 0 ? "+" : "") + Number(gap.toPrecision(3))).replace("-", "−") + (better ? " " + better : "") : "–";
      return make("tr", {}, make("th", { scope: "row" }, row.cells[0].textContent),
        ...cells.map((cell) => make("td", { class: "number" }, cell.textContent)),
        make("td", { class: "number " + better }, text));
    });
    const paired = pairedRows(await differences(table.dataset.pairs), Number(a), Number(b));
    if (a !== first.value || b !== second.value) return;
    const head = make("tr", {}, ...["Metric", ...names, "Difference"].map((name, place) =>
      make("th", place ? { scope: "col", class: "number" } : { scope: "col" }, name)));
    const button = make("button", { type: "button" }, "Show where their answers differ");
    button.addEventListener("click", () => answers([a, b].map((place) => heads[place].dataset.cell), names, button));
    const title = names[1] + " against " + names[0];
    result.replaceChildren(
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, make("table", {},
        make("caption", {}, title + ": differences with 95 % paired intervals, without correction for other comparisons"),
        make("thead", {}, make("tr", {}, ...["Number", "Difference", "In words"].map((name) => make("th", { scope: "col" }, name)))),
        make("tbody", {}, ...paired))),
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "All metrics of both" }, make("table", {}, make("caption", {}, names.join(" and ")),
        make("thead", {}, head), make("tbody", {}, ...rows))),
      make("div", { class: "tools" }, button));
  }

  async function answers(cells, names, button) {
    button.disabled = true;
    const [one, other] = await Promise.all(cells.map(samplesOf));
    if (!one || !other) {
      result.append(make("p", { class: "failed" }, "One of the two has no samples to show."));
      return;
    }
    const both = Object.keys(one).filter((key) => other[key]);
    const keys = both.filter((key) => other[key].mine !== one[key].mine);
    result.append(make("p", { class: "legend" }, keys.length + " of the " + both.length + " answers that the pages of both show differ."));
    for (const key of keys) {
      const article = make("article", { class: "sample" });
      // These texts were escaped when the site was made: markup in them is the marks of differing words alone.
      const put = (name, text) => {
        const element = make(name, { dir: "auto" });
        element.append(...new DOMParser().parseFromString(text, "text/html").body.childNodes);
        return element;
      };
      const prompt = put("p", one[key].prompt);
      prompt.className = "prompt";
      article.append(prompt, make("dl", {}, make("dt", {}, "truth"), put("dd", one[key].truth),
        make("dt", {}, names[0]), put("dd", one[key].mine), make("dt", {}, names[1]), put("dd", other[key].mine)));
      result.append(article);
    }
  }

  first.addEventListener("change", compare);
  second.addEventListener("change", compare);
  const box = make("details", { class: "compare" }, make("summary", {}, "Compare two rows"),
    make("div", { class: "tools" }, make("label", {}, "First", first), make("label", {}, "Second", second)), result);
  table.closest("details").before(box);
  const [a, b] = (state.get(table.id + ".compare") || "").split(".");
  if (heads[a] && heads[b]) { first.value = a; second.value = b; box.open = true; compare(); }
}

// Searches the samples of a cell's page.
function searchable() {
  const articles = [...document.querySelectorAll("article.sample")];
  const field = make("input", { type: "search", placeholder: "words of a question or an answer" });
  const count = make("span", { role: "status" });
  field.addEventListener("input", () => {
    count.textContent = keepMatching(articles, field.value, "answers");
  });
  document.querySelector(".samples").before(make("div", { class: "tools" }, make("label", {}, "Search", field), count));
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("table.all").forEach(comparable);
document.querySelectorAll(".choose").forEach(remembered);
if (document.querySelector(".samples")) searchable();
