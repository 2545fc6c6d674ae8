// The table of candidates: sorted, filtered, a page of rows at a time, and as CSV.
const PAGE = 50;
const { columns, rows } = data.table;
const state = { sort: 0, down: false, page: 0, found: rows.map((_, k) => k) };
const texts = rows.map((row) => row.filter((value) => typeof value === "string").join(" "));
const lower = texts.map((text) => text.toLowerCase());
const COMPARE = { "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };

function matches(terms) {
  const tests = terms.map((term) => {
    const found = /^(.+?)(<=|>=|<|>|=)([-−]?[0-9.]+(?:e[-+]?[0-9]+)?)$/i.exec(term);
    const place = found ? columns.findIndex((column) => column.key.toLowerCase() === found[1].toLowerCase()) : -1;
    if (place < 0) return (k) => (term === term.toLowerCase() ? lower : texts)[k].includes(term); // "Li" is not in "lithium"
    const wanted = Number(found[3].replace("−", "-"));
    return (k) => typeof rows[k][place] === "number" && COMPARE[found[2]](rows[k][place], wanted);
  });
  return rows.map((_, k) => k).filter((k) => tests.every((test) => test(k)));
}

function arrange() {
  state.found = matches(document.getElementById("filter").value.split(/\s+/).filter(Boolean));
  const place = state.sort, sign = state.down ? -1 : 1, empty = (value) => value === null || value === "";
  state.found.sort((p, q) => {
    const [a, b] = [rows[p][place], rows[q][place]];
    if (empty(a) || empty(b)) return empty(a) - empty(b) || p - q;
    if (typeof a === "number" && typeof b === "number") return sign * (a - b) || p - q;
    return sign * (String(a) < String(b) ? -1 : String(a) > String(b) ? 1 : 0) || p - q;
  });
  state.page = 0;
  fill();
}

const numeric = columns.map((_, place) => rows.some((row) => typeof row[place] === "number"));

function fill() {
  const head = document.querySelector("#rows thead"), body = document.querySelector("#rows tbody");
  head.replaceChildren();
  const line = el(head, "tr");
  columns.forEach((column, place) => {
    const cell = el(line, "th", { scope: "col", class: numeric[place] ? "n" : "", title: column.key });
    const sorted = place === state.sort;
    if (sorted) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    const button = el(cell, "button", { type: "button" }, column.title + (sorted ? (state.down ? " ↓" : " ↑") : ""));
    if (column.unit) el(button, "small", {}, ` ${column.unit}`);
    button.addEventListener("click", () => {
      state.down = state.sort === place ? !state.down : false;
      state.sort = place;
      arrange();
      document.querySelectorAll("#rows thead button")[place].focus();
    });
  });
  body.replaceChildren();
  for (const k of state.found.slice(state.page * PAGE, (state.page + 1) * PAGE)) {
    const made = el(body, "tr");
    columns.forEach((column, place) => {
      const value = rows[k][place], cell = el(made, place ? "td" : "th", numeric[place] ? { class: "n" } : {});
      if (!place) cell.setAttribute("scope", "row");
      if (column.key === "formula" && data.structures[k]) {
        const button = el(cell, "button", { type: "button", class: "open", "aria-label": `Show ${value}` });
        for (const part of String(value).split(/(\d+)/)) el(button, /^\d+$/.test(part) ? "sub" : "span", {}, part);
        button.addEventListener("click", () => enlarge(k));
      } else {
        cell.textContent = value === null ? "" : typeof value === "number" ? words(value, column.key === "n_atoms" || !place ? 12 : 4) : value;
        if (typeof value === "string" && value.length > 24) cell.title = value;
      }
    });
  }
  const last = Math.max(1, Math.ceil(state.found.length / PAGE));
  document.getElementById("shown").textContent = `${state.found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  document.getElementById("page").textContent = `page ${state.page + 1} of ${last}`;
  document.getElementById("previous").disabled = state.page === 0;
  document.getElementById("next").disabled = state.page + 1 >= last;
}

// A spreadsheet takes text that begins like a formula for one; an apostrophe keeps it text.
function csvField(value) {
  if (value === null) return "";
  if (typeof value === "number") return String(value);
  const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function csv() {
  const lines = [columns.map((column) => csvField(column.key)), ...state.found.map((k) => rows[k].map(csvField))];
  return lines.map((line) => line.join(",")).join("\n") + "\n";
}

if (document.getElementById("rows")) {
  document.getElementById("filter").addEventListener("input", arrange);
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    document.getElementById(id).addEventListener("click", () => { state.page += step; fill(); });
  }
  document.getElementById("csv").addEventListener("click", () => {
    const link = el(null, "a", { download: "candidates.csv", href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  arrange();
}
