// Signs in, follows /v1/events, and redraws the parts that changed.
// EventSource cannot send a credential, so the stream is read with fetch.

import { ago, audit, banner, devices, rollouts, totals, verdicts } from "/dashboard/render.js";

const KEY = "slmops-operator-token";
const SILENCE_MS = 40_000;
const find = (id) => document.getElementById(id);
const opened = new Set();
const drawn = new Map();

function draw(id, inputs, render) {
  const print = JSON.stringify(inputs);
  if (drawn.get(id) === print) return;
  drawn.set(id, print);
  const place = find(id);
  const scrolled = place.firstElementChild?.scrollTop ?? 0;
  place.replaceChildren(...render());
  if (scrolled && place.firstElementChild) place.firstElementChild.scrollTop = scrolled;
}

function show(snapshot) {
  find("login").hidden = true;
  find("board").hidden = false;
  const newest = snapshot.rollouts[0];
  draw("banner", newest && [newest.state, newest.reason], () => banner(snapshot));
  draw("totals", snapshot.totals, () => totals(snapshot));
  draw("rollouts", [snapshot.rollouts, snapshot.releases, snapshot.totals.devices], () => rollouts(snapshot, opened));
  draw("devices", snapshot.devices, () => devices(snapshot));
  draw("verdicts", snapshot.rollouts.map((one) => one.evaluations), () => verdicts(snapshot));
  draw("audit", snapshot.audit, () => audit(snapshot));
  document.title = newest?.state === "halted" ? "✕ halted · SLMOps fleet" : "SLMOps fleet";
}

function link(state, text) {
  const place = find("link");
  place.dataset.state = state;
  if (place.textContent !== text) place.textContent = text;
}

function askForToken(problem = "") {
  link("off", "not connected");
  find("board").hidden = true;
  find("login").hidden = false;
  find("login-problem").textContent = problem;
  find("token").focus();
}

async function follow(token) {
  const stop = new AbortController();
  let timer = setTimeout(() => stop.abort(), SILENCE_MS);
  const answer = await fetch("/v1/events", {
    headers: { Authorization: `Bearer ${token}` },
    signal: stop.signal,
    cache: "no-store",
  });
  if (answer.status === 403) return false;
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  link("live", "live");
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return true;
    clearTimeout(timer);
    timer = setTimeout(() => stop.abort(), SILENCE_MS);
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      if (event.startsWith("data: ")) show(JSON.parse(event.slice(6)));
    }
  }
}

async function keepFollowing(token) {
  for (let wait = 1000; ; wait = Math.min(wait * 2, 15_000)) {
    try {
      const welcome = await follow(token);
      if (!welcome) {
        sessionStorage.removeItem(KEY);
        askForToken("That token is not this control plane’s.");
        return;
      }
      wait = 500;
    } catch {
      // Shown below; the control plane may be restarting.
    }
    link("lost", "connection lost, trying again");
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

function tokenFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  // A token in the address would end up in bookmarks and screenshots.
  if (found) history.replaceState(null, "", location.pathname);
  return found;
}

function open(token) {
  sessionStorage.setItem(KEY, token);
  link("off", "connecting");
  keepFollowing(token);
}

find("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = find("token").value.trim();
  find("token").value = "";
  if (token) open(token);
});

// Remember which past rollouts are unfolded, so that redrawing does not fold them.
find("rollouts").addEventListener("toggle", (event) => {
  const { id } = event.target.dataset;
  if (id) opened[event.target.open ? "add" : "delete"](id);
}, true);

setInterval(() => {
  for (const time of document.querySelectorAll("time[data-since]")) {
    const text = ago(Date.now() / 1000 - Number(time.dataset.since));
    if (time.textContent !== text) time.textContent = text;
  }
}, 1000);

const known = tokenFromAddress() ?? sessionStorage.getItem(KEY);
if (known) open(known);
else askForToken();
