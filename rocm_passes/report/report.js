"use strict";
const form = document.querySelector("form.filters");
const list = document.querySelector("section.groups");
const overview = document.querySelector("section.overview");
const tabs = [...document.querySelectorAll("nav.tabs button")];
// Texts are read once: reading two thousand of them for every letter of a search would be slow.
const groups = [...list.children].map((element) => ({
  element,
  count: element.querySelector("summary .count"),
  text: element.querySelector("summary").textContent.toLowerCase(),
  sites: [...element.querySelectorAll("ul.sites > li")].map((site) => ({
    element: site, tab: site.dataset.tab, text: site.textContent.toLowerCase(),
  })),
}));
const total = groups.reduce((sum, group) => sum + group.sites.length, 0);
let tab = "overview";

function matches(group, site, words) {
  return (tab === "" || tab === "overview" || site.tab === tab)
    && words.every((word) => site.text.includes(word) || group.text.includes(word));
}

function filter() {
  const wanted = [...form.querySelectorAll("select[data-key]")].filter((s) => s.value);
  const words = form.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const group of groups) {
    let here = 0;
    if (wanted.every((s) => group.element.dataset[s.dataset.key] === s.value)) {
      for (const site of group.sites) {
        const visible = matches(group, site, words);
        if (site.element.hidden === visible) site.element.hidden = !visible;
        here += visible;
      }
    }
    group.element.hidden = here === 0;
    group.count.textContent = here;
    shown += here;
  }
  form.querySelector("output").textContent =
    (shown === total ? `${shown}` : `${shown} of ${total}`) + (total === 1 ? " site" : " sites");
}

function sort() {
  const key = form.querySelector("select[data-sort]").value;
  const numeric = ["count", "bytes", "saved"].includes(key);
  const value = (group) => group.element.dataset[key];
  const order = (a, b) => (numeric ? value(b) - value(a) : value(a).localeCompare(value(b)));
  list.append(...[...groups].sort(order).map((group) => group.element));
}

function select(name) {
  tab = name;
  for (const each of tabs) {
    const chosen = each.dataset.tab === name;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
  }
  overview.hidden = name !== "overview";
  list.hidden = form.hidden = name === "overview";
  filter();
}

// A link of the overview, or an address that ends in a group's name, opens that group.
function follow() {
  const group = document.getElementById(location.hash.slice(1));
  if (!group || !group.classList.contains("group")) return;
  if (tab === "overview") select("");
  group.open = true;
  group.scrollIntoView();
  // Groups above it get their true heights when they are first laid out.
  requestAnimationFrame(() => group.scrollIntoView());
}

document.body.classList.add("scripted");
form.addEventListener("input", (event) => (event.target.dataset.sort === "" ? sort() : filter()));
form.addEventListener("submit", (event) => event.preventDefault());
for (const each of tabs) each.addEventListener("click", () => select(each.dataset.tab));
document.querySelector("nav.tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = tabs[(tabs.findIndex((t) => t.dataset.tab === tab) + step + tabs.length) % tabs.length];
  select(next.dataset.tab);
  next.focus();
});
window.addEventListener("hashchange", follow);
select("overview");
follow();
