// Turns a snapshot into elements. Everything from the fleet goes in as text, never as
// markup, so a device cannot write into the page.

const DOTS_AT_MOST = 120;

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const number = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit", minute: "2-digit", second: "2-digit",
});
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

export function ago(seconds) {
  if (seconds < 2) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

function at(seconds) {
  const when = new Date(seconds * 1000);
  const today = new Date().toDateString() === when.toDateString();
  const text = today ? clock.format(when) : `${day.format(when)} ${clock.format(when)}`;
  return element("time", { datetime: when.toISOString() }, text);
}

function since(seconds) {
  const age = Date.now() / 1000 - seconds;
  return element("time", { "data-since": seconds, datetime: new Date(seconds * 1000).toISOString() }, ago(age));
}

function pill(text, tone) {
  return element("span", { class: `pill ${tone}` }, text);
}

function empty(...content) {
  return element("p", { class: "empty" }, ...content);
}

const code = (text) => element("code", {}, text);

const STATES = {
  draft: ["draft", "warn"],
  running: ["running", "busy"],
  paused: ["❚❚ paused", "warn"],
  halted: ["✕ halted", "bad"],
  done: ["✓ done", "good"],
  aborted: ["aborted", "idle"],
};

// ---- banner --------------------------------------------------------------------------

export function banner(snapshot) {
  const newest = snapshot.rollouts[0];
  if (!newest || !["halted", "paused"].includes(newest.state)) return [];
  const halted = newest.state === "halted";
  const title = halted
    ? `✕ Rollout ${newest.id} of ${newest.release} halted by itself`
    : `❚❚ Rollout ${newest.id} of ${newest.release} is paused`;
  return [
    element(
      "div", { class: `banner ${halted ? "bad" : "warn"}` },
      element("strong", {}, title),
      element("p", {}, newest.reason),
      halted ? null : element("p", {}, "Go on with ", code(`slmops rollout resume ${newest.id}`)),
    ),
  ];
}

// ---- totals --------------------------------------------------------------------------

export function totals({ totals: all }) {
  const figure = (name, value, note, alarm = false) =>
    element(
      "dl", { class: alarm ? "card alarm" : "card" },
      element("dt", {}, name),
      element("dd", {}, value, note ? element("small", {}, ` ${note}`) : null),
    );
  // A label may be long: on one line, cut in its name and never in its version.
  const named = (name, value, note) => {
    const [, front, version] = /^(.*?)(-\d+)?$/.exec(value);
    return element(
      "dl", { class: "card" },
      element("dt", {}, name),
      element(
        "dd", { class: "label", title: value },
        element("div", {}, element("span", {}, front), version ?? null),
        note ? element("small", {}, note) : null,
      ),
    );
  };
  const releases = Object.entries(all.by_release).sort((a, b) => b[1] - a[1]);
  return [
    figure("Devices", number.format(all.devices)),
    figure("Serving a model", number.format(all.serving), `of ${number.format(all.devices)}`),
    figure("Requests answered", number.format(all.requests)),
    figure("Requests failed", number.format(all.failures), "", all.failures > 0),
    figure("Models shipped", bytes(all.bytes_downloaded)),
    named(
      "Main release",
      releases.length ? releases[0][0] : "–",
      releases.length ? `on ${number.format(releases[0][1])}` : "",
    ),
  ];
}

// ---- rollouts ------------------------------------------------------------------------

const OUTCOMES = {
  succeeded: ["✓", "committed"],
  failed: ["✕", "failed"],
  silent: ["?", "silent past its deadline"],
  working: ["↻", "installing"],
  pending: ["", "not offered yet"],
};

function outcomeOf(member) {
  const offered = member.offered_at !== null;
  return member.outcome === "pending" && offered ? "working" : member.outcome;
}

function dot(member) {
  const outcome = outcomeOf(member);
  const [glyph, words] = OUTCOMES[outcome];
  const reason = member.reason ? `: ${member.reason}` : "";
  const label = `${member.device} (${member.device_class}) ${words}${reason}`;
  return element(
    "li", { class: `dot ${outcome}`, title: label },
    element("span", { "aria-hidden": "true" }, glyph),
    element("span", { class: "skip" }, label),
  );
}

function meter(wave) {
  const working = wave.offered - wave.succeeded - wave.failed - wave.silent;
  const bar = element("div", { class: "meter", "aria-hidden": "true" });
  for (const [name, count] of [
    ["succeeded", wave.succeeded], ["failed", wave.failed],
    ["silent", wave.silent], ["working", working],
  ]) {
    const part = element("i", { class: name });
    part.style.width = `${(100 * count) / Math.max(wave.devices, 1)}%`;
    bar.append(part);
  }
  return bar;
}

function waveTone(rollout, wave) {
  const over = wave.index < rollout.wave || rollout.state === "done";
  if (over) return "passed";
  if (wave.index > rollout.wave) return "later";
  return { halted: "halted", aborted: "later" }[rollout.state] ?? "now";
}

function waveName(rollout, wave) {
  if (rollout.lab && wave.index === 0) return "Lab";
  return `Wave ${wave.index + 1 - (rollout.lab ? 1 : 0)}`;
}

function waveNote(rollout, wave) {
  if (!wave.devices) return "no devices";
  const bad = wave.failed + wave.silent;
  const soaking = rollout.state === "running" && wave.index === rollout.wave
    && rollout.phase === "soaking" ? ", soaking" : "";
  return `${wave.succeeded} of ${wave.devices} ok${bad ? `, ${bad} failed` : ""}${soaking}`;
}

function strip(rollout) {
  const list = element("ol", { class: "strip" });
  for (const wave of rollout.waves) {
    const members = rollout.members.filter((member) => member.wave === wave.index);
    const few = wave.devices <= DOTS_AT_MOST && members.length === wave.devices;
    list.append(
      element(
        "li", { class: `wave ${waveTone(rollout, wave)}` },
        element(
          "h4", {}, waveName(rollout, wave),
          element("span", {}, waveNote(rollout, wave)),
        ),
        few ? element("ul", { class: "dots" }, ...members.map(dot)) : meter(wave),
      ),
    );
  }
  return list;
}

function failures(rollout) {
  const bad = rollout.members.filter((member) => ["failed", "silent"].includes(member.outcome));
  if (!bad.length) return null;
  const rows = bad.slice(0, 5).map((member) =>
    element("li", {}, element("strong", {}, `✕ ${member.device}`), ` ${member.reason}`));
  if (bad.length > 5) rows.push(element("li", {}, `and ${bad.length - 5} more`));
  return element("ul", { class: "reasons" }, ...rows);
}

function leftOut(rollout) {
  if (!rollout.left_out.length) return null;
  const [first] = rollout.left_out;
  const others = rollout.left_out.length - 1;
  return element(
    "p", { class: "leftout" },
    `Left out: ${first.device}, ${first.reason}${others ? `; and ${others} more` : ""}`,
  );
}

function heading(rollout) {
  const [text, tone] = STATES[rollout.state];
  const what = rollout.reverts ? `${rollout.id}, back from ${rollout.reverts}` : rollout.id;
  const who = rollout.started_by ? ` by ${rollout.started_by}` : "";
  return [
    element("h3", {}, rollout.release),
    pill(text, tone),
    element("span", { class: "soft" }, `${what}, started${who} `, at(rollout.created_at)),
  ];
}

function approvals(rollout) {
  if (rollout.state !== "draft") return null;
  return element(
    "p", { class: "why" },
    `${rollout.approved_by.length} of ${rollout.approvals} approvals: another operator gives one with `,
    code(`slmops rollout approve ${rollout.id}`),
  );
}

function legend() {
  const entries = Object.entries(OUTCOMES).map(([outcome, [glyph, words]]) =>
    element(
      "li", {},
      element("span", { class: `dot ${outcome}`, "aria-hidden": "true" }, glyph), words,
    ));
  return element("ul", { class: "legend" }, ...entries);
}

function current(rollout) {
  const bannered = ["halted", "paused"].includes(rollout.state);
  const why = rollout.reason && !bannered ? element("p", { class: "why soft" }, rollout.reason) : null;
  return element(
    "article", { class: "card rollout" },
    element("header", {}, ...heading(rollout)), why, approvals(rollout),
    strip(rollout), failures(rollout), leftOut(rollout), legend(),
  );
}

function past(rollout, open) {
  const why = rollout.reason ? element("p", { class: "why soft" }, rollout.reason) : null;
  return element(
    "details", { class: "card rollout past", "data-id": rollout.id, open: open ? "" : null },
    element("summary", {}, ...heading(rollout)),
    element("div", {}, why, strip(rollout), failures(rollout), leftOut(rollout)),
  );
}

export function rollouts(snapshot, opened) {
  const [newest, ...older] = snapshot.rollouts;
  if (newest) return [current(newest), ...older.map((one) => past(one, opened.has(one.id)))];
  const release = snapshot.releases[0];
  if (!release) {
    return [empty("No release is published yet. ", code("slmops release create"), " makes the first one from a build.")];
  }
  if (!snapshot.totals.devices) {
    return [empty(`Release ${release.label} is published and waits for devices to enrol.`)];
  }
  return [empty(`Release ${release.label} is ready: `, code(`slmops rollout start ${release.label}`), " brings it to the fleet in waves.")];
}

// ---- fleet ---------------------------------------------------------------------------

const DEVICE_STATES = {
  idle: ["idle", "idle"],
  committed: ["✓ committed", "good"],
  rolled_back: ["✕ rolled back", "bad"],
  waiting: ["waiting", "warn"],
};

function state(device) {
  const [text, tone] = DEVICE_STATES[device.state] ?? [`↻ ${device.state}`, "busy"];
  const why = device.reason ? element("span", { class: "why" }, device.reason) : null;
  return element("span", {}, pill(text, tone), why);
}

const COLUMNS = [
  ["Device", "id", (device) => device.id],
  ["Class", "", (device) => device.device_class ?? "fits none"],
  ["Release", "short", (device) => device.release ?? "none yet"],
  ["Installation", "state", state],
  ["Seen", "short", (device) => since(device.seen_at)],
  ["Tokens/s", "number", (device) => device.decode_tokens_per_s?.toFixed(1) ?? "–"],
  ["RSS", "number", (device) => device.peak_rss_mib ? `${Math.round(device.peak_rss_mib)} MiB` : "–"],
  ["Failed", "number", (device) => number.format(device.failures)],
];

function row(device) {
  const cells = COLUMNS.map(([name, kind, cell]) => {
    const alarm = name === "Failed" && device.failures > 0 ? " alarm" : "";
    return element("td", { class: kind + alarm, "data-name": name }, element("span", {}, cell(device)));
  });
  return element("tr", {}, ...cells);
}

export function devices(snapshot) {
  if (!snapshot.devices.length) {
    return [
      empty(
        "No device has enrolled yet. Make a one-time token with ", code("slmops device token"),
        ", then on the device run ", code("slmops agent enrol --token …"), " and ",
        code("slmops agent run"), ".",
      ),
    ];
  }
  const head = COLUMNS.map(([name, kind]) => element("th", { scope: "col", class: kind }, name));
  const hidden = snapshot.totals.devices - snapshot.devices.length;
  return [
    element(
      "div", { class: "card table" },
      element(
        "table", {},
        element("thead", {}, element("tr", {}, ...head)),
        element("tbody", {}, ...snapshot.devices.map(row)),
      ),
      hidden > 0
        ? element("p", { class: "more" }, `and ${number.format(hidden)} more, all counted above; `, code("slmops device list"), " shows every one")
        : null,
    ),
  ];
}

// ---- histories -----------------------------------------------------------------------

const VERDICTS = {
  pass: ["✓ pass", "good"],
  fail: ["✕ fail", "bad"],
  inconclusive: ["waits", "idle"],
};

export function verdicts(snapshot) {
  const all = snapshot.rollouts.flatMap((one) => one.evaluations);
  all.sort((a, b) => b.at - a.at);
  if (!all.length) return [empty("Verdicts appear here with their reasons once a rollout runs.")];
  const entries = all.slice(0, 60).map((one) => {
    const [text, tone] = VERDICTS[one.result.verdict];
    return element(
      "li", { class: one.result.verdict },
      element(
        "div", { class: "meta" }, pill(text, tone),
        `${one.rollout}, wave ${one.wave + 1}, ${one.result.gate}`, at(one.at),
      ),
      element("p", {}, one.result.reason),
    );
  });
  return [element("ol", { class: "card timeline", tabindex: "0", "aria-label": "Verdicts, newest first" }, ...entries)];
}

export function audit(snapshot) {
  if (!snapshot.audit.length) return [empty("Nothing has been done yet.")];
  const entries = snapshot.audit.map((one) =>
    element(
      "li", {},
      element("div", { class: "meta" }, element("strong", {}, one.action), one.actor, at(one.at)),
      element("p", {}, one.detail ? `${one.subject}: ${one.detail}` : one.subject),
    ));
  return [element("ol", { class: "card timeline", tabindex: "0", "aria-label": "Audit log, newest first" }, ...entries)];
}
