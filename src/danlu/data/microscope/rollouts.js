"use strict";
// The rollout browser: choose, sort and lay out the answers that stand in #rows. Text reaches the page as text only.

const PAGE = 50;

function said(prompt) {
  if (!Array.isArray(prompt)) return prompt ?? "";
  return prompt.map((message) => `${message.role}: ${message.content}`).join("\n");
}

function matches(row, choice) {
  const words = choice.search.toLowerCase();
  const text = () => [said(row.prompt), row.answer, row.origin].join("\n").toLowerCase();
  return row.step >= choice.first && row.step <= choice.last && (!choice.cut || row.whole === false) &&
    (!words || text().includes(words));
}

function select(rows, choice) {
  const [key, down] = choice.sort.split("-");
  const value = (row) => (typeof row[key] === "number" ? row[key] : null);
  const order = (one, other) => {
    const a = value(one), b = value(other);
    if (a === null || b === null) return (a === null) - (b === null);
    return down === "down" ? b - a : a - b;
  };
  return rows.filter((row) => matches(row, choice)).sort(order);
}

function byPrompt(rows) {
  const groups = new Map();
  for (const row of rows) {
    const key = JSON.stringify([row.index ?? null, said(row.prompt)]);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  }
  for (const group of groups.values()) group.sort((a, b) => a.step - b.step || (a.sample ?? 0) - (b.sample ?? 0));
  return [...groups.values()];
}

function colour(reward, low, high) {
  if (typeof reward !== "number") return "transparent";
  const share = high > low ? (reward - low) / (high - low) : 0.5;
  return `hsl(${Math.round(120 * share)} 65% 50% / 0.25)`;
}

function numbers(row) {
  const shown = [];
  for (const [key, value] of Object.entries(row)) {
    if (["prompt", "answer", "origin", "index", "sample", "whole"].includes(key)) continue;
    if (typeof value === "number") shown.push(`${key} ${Number.isInteger(value) ? value : value.toPrecision(4)}`);
    else if (value && typeof value === "object") shown.push(...numbers(value).map((text) => `${key}: ${text}`));
  }
  if (row.whole === false) shown.push("cut at the limit");
  return shown;
}

function element(name, text, classes) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

function card(row, range, withPrompt) {
  const made = element("article", undefined, "card");
  made.style.background = colour(row.reward, range.low, range.high);
  made.append(element("p", numbers(row).join("  ·  "), "numbers"));
  if (withPrompt) made.append(element("pre", said(row.prompt), "prompt"));
  made.append(element("pre", row.answer ?? "", "answer"));
  if (withPrompt && row.origin) made.append(element("p", row.origin, "numbers"));
  return made;
}

function group(rows, range) {
  const made = element("section");
  made.append(element("pre", said(rows[0].prompt), "prompt"), element("p", rows[0].origin ?? "", "numbers"));
  const side = element("div", undefined, "side");
  side.append(...rows.map((row) => card(row, range, false)));
  made.append(side);
  return made;
}

function start() {
  const rows = JSON.parse(document.getElementById("rows").textContent);
  const rewards = rows.map((row) => row.reward).filter((one) => typeof one === "number");
  const range = { low: rewards.reduce((a, b) => Math.min(a, b), Infinity),
    high: rewards.reduce((a, b) => Math.max(a, b), -Infinity) };
  const control = (id) => document.getElementById(id);
  let limit = PAGE;
  const draw = () => {
    const choice = { first: Number(control("first").value), last: Number(control("last").value),
      search: control("search").value, cut: control("cut").checked, sort: control("sort").value };
    const found = select(rows, choice);
    const blocks = control("prompts").checked ? byPrompt(found) : found;
    control("steps").textContent = `${choice.first} to ${choice.last}`;
    control("count").textContent = `${found.length} of ${rows.length} answers`;
    control("list").replaceChildren(...blocks.slice(0, limit).map(
      (one) => (Array.isArray(one) ? group(one, range) : card(one, range, true))));
    control("more").hidden = blocks.length <= limit;
  };
  for (const id of ["first", "last", "search", "cut", "sort", "prompts"])
    control(id).addEventListener("input", () => { limit = PAGE; draw(); });
  control("more").addEventListener("click", () => { limit += PAGE; draw(); });
  draw();
}

if (typeof document !== "undefined") start();
