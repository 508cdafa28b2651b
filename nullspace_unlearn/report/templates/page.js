"use strict";
// Heat maps: one stop of the tab key each, arrow keys within, and the cell in words beneath.
for (const table of document.querySelectorAll("table.heat")) {
  const domains = Number(table.dataset.domains);
  const readout = table.closest(".scroll").nextElementSibling;
  const names = table.tHead.rows[1].cells;
  const body = table.tBodies[0];
  table.setAttribute("role", "grid");
  readout.hidden = false;
  readout.textContent = "Point at a cell, or go to one with the arrow keys.";
  let current = null;
  const say = (cell) => {
    const row = cell.parentElement;
    const d = (cell.cellIndex - 1) % domains;
    const [before, after, change] = [0, 1, 2].map((i) => row.cells[1 + i * domains + d]);
    const images = Number(before.dataset.n);
    const number = (one) => one.firstElementChild?.textContent ?? "none";
    const text = images
      ? `before ${number(before)}, after ${number(after)}, change ${number(change)}; ` +
        `${images} ${images === 1 ? "image" : "images"}`
      : "no images";
    const gone = before.classList.contains("gone") ? "; to be forgotten" : "";
    const class_ = document.createElement("bdi");
    class_.textContent = row.cells[0].textContent;
    const domain = document.createElement("bdi");
    domain.textContent = names[1 + d].textContent;
    readout.replaceChildren(class_, " in ", domain, `: ${text}${gone}`);
  };
  const go = (cell) => {
    if (current) current.tabIndex = -1;
    current = cell;
    cell.tabIndex = 0;
  };
  go(body.rows[0].cells[1]);
  table.addEventListener("mouseover", (event) => {
    const cell = event.target.closest("tbody td");
    if (cell) say(cell);
  });
  table.addEventListener("focusin", (event) => {
    const cell = event.target.closest("tbody td");
    if (cell) { go(cell); say(cell); }
  });
  body.addEventListener("click", (event) => {
    const cell = event.target.closest("td");
    if (cell) { go(cell); cell.focus(); }
  });
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("tbody td");
    if (!cell || event.ctrlKey || event.altKey || event.metaKey) return;
    const rows = body.rows, r = cell.parentElement.sectionRowIndex, c = cell.cellIndex;
    const to = {
      ArrowLeft: [r, Math.max(c - 1, 1)], ArrowRight: [r, Math.min(c + 1, 3 * domains)],
      ArrowUp: [Math.max(r - 1, 0), c], ArrowDown: [Math.min(r + 1, rows.length - 1), c],
      Home: [r, 1], End: [r, 3 * domains],
      PageUp: [Math.max(r - 10, 0), c], PageDown: [Math.min(r + 10, rows.length - 1), c],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    const next = rows[to[0]].cells[to[1]];
    go(next);
    next.focus();
  });
}
// On paper nothing can be opened: what is short is opened first, and closed again.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open]):not(.large)")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
