"use strict";
const table = document.querySelector("table.sites");
const rows = [...table.tBodies[0].rows];
const form = document.querySelector("form.filters");

function filter() {
  const wanted = [...form.querySelectorAll("select")].filter((s) => s.value);
  const words = form.querySelector("input").value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every((s) => row.dataset[s.dataset.key] === s.value)
      || !words.every((w) => text.includes(w));
    shown += row.hidden ? 0 : 1;
  }
  form.querySelector("output").textContent =
    (shown === rows.length ? `${shown}` : `${shown} of ${rows.length}`)
    + (rows.length === 1 ? " site" : " sites");
}

function sortBy(header) {
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const text = (row) => row.cells[header.cellIndex].textContent;
  rows.sort((a, b) => text(a).localeCompare(text(b), "en", { numeric: true }) * (down ? -1 : 1));
  table.tBodies[0].append(...rows);
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
for (const header of table.querySelectorAll("th")) {
  header.addEventListener("click", () => sortBy(header));
  header.addEventListener("keydown", (event) => { if (event.key === "Enter") sortBy(header); });
}
