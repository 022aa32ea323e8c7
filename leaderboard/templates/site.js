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
  const number = { "inf": Infinity, "-inf": -Infinity }[cell.dataset.value] ?? Number(cell.dataset.value ?? NaN);
  if (cell.dataset.value !== undefined) return Number.isNaN(number) ? null : number;
  return cell.textContent.trim().toLowerCase();
}

// What is missing stays last in both directions.
function compareValues(one, other, sign) {
  if (one === null || other === null) return (one === null) - (other === null);
  if (typeof one === "number" && typeof other === "number") return sign * (one < other ? -1 : one > other ? 1 : 0);
  return sign * String(one).localeCompare(String(other), undefined, { numeric: true });
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
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of original) {
      row.hidden = !wanted.every((word) => row.textContent.toLowerCase().includes(word));
      shown += !row.hidden;
    }
    count.textContent = wanted.length ? shown + " of " + original.length + " rows" : "";
    remember(table.id + ".filter", words);
  }

  function show(column, visible) {
    for (const row of table.rows) if (row.cells[column] && row.cells.length === heads.length) row.cells[column].hidden = !visible;
  }

  const field = make("input", { type: "search", placeholder: "method, needs, source" });
  const count = make("span", { role: "status" });
  field.addEventListener("input", () => filter(field.value));
  const boxes = heads.map((head, column) => {
    const box = make("input", { type: "checkbox" });
    box.checked = true;
    box.addEventListener("change", () => {
      show(column, box.checked);
      remember(table.id + ".hide", boxes.map((b, c) => (b.checked ? "" : c)).filter((c) => c !== "").join("."));
    });
    return box;
  });
  const names = heads.map((head) => head.textContent.replace("⇅", "").trim());
  const columns = make("details", {}, make("summary", {}, "Columns"),
    ...boxes.map((box, column) => make("label", {}, box, names[column])));
  const tools = make("div", { class: "tools" }, make("label", {}, "Filter", field), count, columns);
  (table.closest(".scroll") || table).before(tools);

  const hidden = (state.get(table.id + ".hide") || "").split(".").filter(Boolean).map(Number);
  for (const column of hidden) if (boxes[column]) { boxes[column].checked = false; show(column, false); }
  const words = state.get(table.id + ".filter") || "";
  if (words) { field.value = words; filter(words); }
  const [column, direction] = (state.get(table.id + ".sort") || "").split(".");
  if (heads[column] && ["ascending", "descending"].includes(direction)) sort(Number(column), direction);
}

// -- two rows of a table beside each other --------------------------------------------------------------------------

const loaded = new Map();
const waiting = new Map();

// The sample files of cells call this; a page opened from a disk may load scripts, but not read files.
function unlearnbenchSamples(content) {
  loaded.set(content.cell, content.rows);
  waiting.get(content.cell)?.();
}

function samplesOf(cell) {
  if (loaded.has(cell)) return Promise.resolve(loaded.get(cell));
  return new Promise((done) => {
    waiting.set(cell, () => done(loaded.get(cell)));
    const script = make("script", { src: "../samples/" + encodeURIComponent(cell) + ".js" });
    script.addEventListener("error", () => done(null));
    document.head.append(script);
  });
}

function comparable(table) {
  const heads = [...table.tHead.rows[0].cells].slice(1);
  if (heads.length < 2) return;
  const options = () => [make("option", { value: "" }, "–"), ...heads.map((head, place) => make("option", { value: place }, head.textContent))];
  const first = make("select", {}, ...options());
  const second = make("select", {}, ...options());
  const result = make("div", { role: "region", "aria-live": "polite", "aria-label": "Comparison" });

  function compare() {
    const [a, b] = [first.value, second.value];
    remember(table.id + ".compare", a !== "" && b !== "" ? a + "." + b : "");
    result.replaceChildren();
    if (a === "" || b === "" || a === b) return;
    const names = [a, b].map((place) => heads[place].textContent);
    const rows = [...table.tBodies[0].rows].map((row) => {
      const cells = [a, b].map((place) => row.cells[Number(place) + 1]);
      const [one, other] = cells.map((cell) => Number(cell.textContent.replace("−", "-").replace("–", "NaN").replace("∞", "Infinity")));
      const gap = other - one;
      const better = row.dataset.better === "target" || !gap ? "" : (gap > 0) === (row.dataset.better === "higher") ? "better" : "worse";
      const text = Number.isFinite(gap) ? (gap > 0 ? "+" : "") + Number(gap.toPrecision(3)) + (better ? " " + better : "") : "–";
      return make("tr", {}, make("th", { scope: "row" }, row.cells[0].textContent),
        ...cells.map((cell) => make("td", { class: "number" }, cell.textContent)),
        make("td", { class: "number " + better }, text));
    });
    const head = make("tr", {}, ...["Metric", ...names, "Difference"].map((name, place) =>
      make("th", place ? { scope: "col", class: "number" } : { scope: "col" }, name)));
    const button = make("button", { type: "button" }, "Show where their answers differ");
    button.addEventListener("click", () => answers([a, b].map((place) => heads[place].dataset.cell), names, button));
    result.append(
      make("div", { class: "scroll", tabindex: "0" }, make("table", {}, make("caption", {}, names.join(" and ")),
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
    const keys = Object.keys(one).filter((key) => other[key] && other[key].mine !== one[key].mine);
    result.append(make("p", { class: "legend" }, keys.length + " of " + Object.keys(one).length + " shown answers differ."));
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

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("table.all").forEach(comparable);
