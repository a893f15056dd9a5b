// The page's sections, kept up to date in place.

import { chart } from "./chart.js";
import { LAGS, LATE, ended, isCopy, isStream, keyOf, lagOf, nameOf, rateOf, replicates } from "./judge.js";
import { bytes, clock, element, lasting, list, long, mark, plural, say, sign } from "./words.js";

const MOST = 100;
const SOON_DAYS = 14;
const CONFIRMED = { write: "written", flush: "flushed", apply: "applied" };
const find = (selector) => document.querySelector(selector);

function put(node, state, words) {
  if (node.dataset.state !== state) {
    node.dataset.state = state;
    node.replaceChildren(sign(state), element("span"));
  }
  say(node.lastChild, words);
}

const QUESTIONS = [
  ["streaming", "Is it streaming?"],
  ["behind", "How far behind?"],
  ["wrong", "What is wrong, and since when?"],
];

export function answers(judged) {
  for (const [id, question] of QUESTIONS) {
    const box = find(`#${id}`);
    if (!box.firstChild) {
      box.append(element("h2", {}, question), element("p", { class: "big" }), element("p", { class: "detail" }));
    }
    const { state, big, detail } = judged[id];
    put(box.children[1], state, big);
    say(box.children[2], detail);
  }
}

export function problems(found, now) {
  find("#problems").hidden = found.length === 0;
  list(
    find("#problems ul"),
    found,
    (one) => `${one.state} ${one.key}`,
    makeProblem,
    (item, one) => {
      const [, what, since, why, way] = item.children;
      say(what, one.what);
      say(since, whenOf(one, now));
      say(why, one.why);
      say(way, one.way && `Do: ${one.way}`);
      why.hidden = !one.why;
      way.hidden = !one.way;
    },
  );
}

function whenOf({ since, at }, now) {
  if (at) return `last ${clock(at, now)}, ${long((now - at) / 1000)} ago`;
  return since ? `since ${clock(since, now)}, ${long((now - since) / 1000)}` : "";
}

function makeProblem(one) {
  const item = element("li", { class: "problem", "data-state": one.state }, sign(one.state));
  item.append(...["what", "since", "why", "way"].map((part) => element("p", { class: part })));
  return item;
}

const parts = new WeakMap();

export function sessions(snapshot, judged, series, at, now) {
  const replicating = snapshot.sessions.filter(replicates);
  replicating.sort((one, other) => Number(isStream(other) || isCopy(other)) - Number(isStream(one) || isCopy(one)));
  const others = snapshot.sessions.filter((session) => !replicates(session));
  find("#no-streams").hidden = replicating.length > 0;
  list(
    find("#streams"),
    replicating.slice(0, MOST),
    (session) => `${keyOf(session)} ${shapeOf(session)}`,
    makeSession,
    (item, session) => {
      const card = parts.get(item);
      say(card.who, `${judged.near(session) ? "From" : "To"} ${nameOf(session)}`);
      const { state, words } = stateOf(session, judged.late.get(session));
      put(card.state, state, words);
      say(card.facts, factsOf(session, now));
      card.update(session, series.get(keyOf(session)) ?? [], at);
    },
  );
  find("#others").hidden = others.length === 0;
  list(
    find("#others tbody"),
    others.slice(0, MOST),
    keyOf,
    () => row(["", "", "number", "number"]),
    (tr, session) => {
      const [who, what, since, rate] = tr.children;
      cell(who, nameOf(session), session.identity ? session.peer : "");
      cell(what, askedBy(session), `${session.kind}, ${session.tunnel}`);
      cell(since, clock(session.since, now), long(session.seconds));
      cell(rate, `${bytes(rateOf(session))}/s`, bytes(session.bytes_to_upstream + session.bytes_to_downstream));
    },
  );
  hidden("#more-streams", replicating.length);
  hidden("#more-others", others.length);
}

function hidden(selector, count) {
  const more = find(selector);
  more.hidden = count <= MOST;
  say(more, count > MOST ? `And ${count - MOST} more: pgtlsproxy status --json shows all.` : "");
}

const shapeOf = (session) => (isCopy(session) || session.basebackup ? "copy" : session.replication ? "stream" : "idle");

function stateOf(session, late) {
  if (isCopy(session)) return { state: "good", words: "Base backup" };
  if (session.activity === "streaming" && !isStream(session)) return { state: "good", words: "WAL of a base backup" };
  if (!isStream(session)) return { state: "unknown", words: `${session.kind}, idle` };
  if (late.first) return { state: "warn", words: `Streaming, ${lasting(late.top.seconds)} behind` };
  return { state: "good", words: "Streaming" };
}

function askedBy(session) {
  const name = session.application_name ? `${session.user} as ${session.application_name}` : session.user;
  return session.database ? `${name}, database ${session.database}` : name;
}

function factsOf(session, now) {
  const stream = session.replication;
  const facts = [askedBy(session), session.kind];
  if (stream?.slot) facts.push(`slot ${stream.slot}`);
  if (stream?.timeline) facts.push(`timeline ${stream.timeline}`);
  if (session.server_version) facts.push(`PostgreSQL ${session.server_version}`);
  if (session.backend_pid) facts.push(`backend ${session.backend_pid}`);
  facts.push(`${session.peer}${session.upstream ? ` to ${session.upstream}` : ""}`);
  facts.push(`since ${clock(session.since, now)} (${long(session.seconds)})`);
  if (session.id) facts.push(`id ${session.id}`);
  return facts.join(" · ");
}

function makeSession(session) {
  const who = element("h3");
  const state = element("p", { class: "state" });
  const facts = element("p", { class: "facts quiet" });
  const article = element("article", { class: "stream" }, element("header", {}, who, state), facts);
  const { nodes, update } = { copy: makeCopy, stream: makeStream, idle: () => ({ nodes: [], update() {} }) }[
    shapeOf(session)
  ]();
  article.append(...nodes);
  parts.set(article, { who, state, facts, update });
  return article;
}

function makeStream() {
  const rate = chart("Rate", [["rate", "rate"]], 1024, (value) => `${bytes(value)}/s`);
  const lag = chart(
    "Lag",
    LAGS.map((which) => [which, which]),
    1,
    lasting,
  );
  const body = element("tbody");
  const head = ["Position", "LSN", "Behind", "Lag"].map((title, i) =>
    element("th", { scope: "col", ...(i > 1 && { class: "number" }) }, title),
  );
  const table = element("table", { class: "positions" }, element("thead", {}, element("tr", {}, ...head)), body);
  const update = (session, points, at) => {
    rate.draw(points, at, `${bytes(rateOf(session))}/s`);
    const most = Math.max(...LAGS.map((which) => lagOf(session, which).seconds ?? 0));
    lag.draw(points, at, most > 0 ? lasting(most) : "none");
    const stream = session.replication;
    const rows = [
      ["sent", stream.sent_lsn],
      ...LAGS.map((which) => [CONFIRMED[which], stream[`${CONFIRMED[which]}_lsn`], lagOf(session, which)]),
    ];
    list(
      body,
      rows,
      ([name]) => name,
      ([name]) => row(["lsn", "number", "number"], name),
      (tr, [, lsn, behind]) => {
        const [, position, distance, time] = tr.children;
        tr.toggleAttribute("data-late", behind?.seconds >= LATE);
        say(position, lsn ?? "–");
        say(distance, typeof behind?.bytes === "number" ? bytes(behind.bytes) : "");
        say(time, behind ? (behind.seconds ? lasting(behind.seconds) : behind.bytes === 0 ? "none" : "–") : "");
      },
    );
  };
  return { nodes: [element("div", { class: "body" }, rate.figure, lag.figure, table)], update };
}

function makeCopy() {
  const bar = element("progress", { class: "copy", max: "1", "aria-label": "Base backup" });
  const words = element("p", { class: "quiet" });
  const update = (session) => {
    const copy = session.basebackup;
    if (!copy) return;
    const done = Math.max(copy.done_bytes ?? 0, copy.bytes);
    const part = copy.total_bytes ? Math.min(1, done / copy.total_bytes) : null;
    if (part === null) bar.removeAttribute("value");
    else bar.value = part;
    const of = part === null ? "" : ` of about ${bytes(copy.total_bytes)}, ${Math.floor(part * 100)} %`;
    say(
      words,
      `${bytes(done)}${of} · ${bytes(rateOf(session))}/s · ${plural(copy.tablespaces, "tablespace", "tablespaces")}`,
    );
  };
  return { nodes: [bar, words], update };
}

function row(classes, heading) {
  const cells = classes.map((name) => element("td", name ? { class: name } : {}));
  return element("tr", {}, ...(heading === undefined ? [] : [element("th", { scope: "row" }, heading)]), ...cells);
}

function cell(node, text, ...below) {
  if (!node.firstElementChild) node.replaceChildren(element("span"), element("small"), element("small"));
  const [first, ...more] = node.children;
  say(first, text);
  more.forEach((line, i) => say(line, below[i] ?? ""));
}

const WHOSE = { own: "This node", ca: "CA", crl: "CRL", peer: "Peer" };

export function certificates(all, now) {
  const sorted = [...all].sort((one, other) => one.days_left - other.days_left);
  const key = (one) => `${one.of} ${one.name} ${one.serial}`;
  list(
    find("#certificates tbody"),
    sorted,
    key,
    () => row(["", "number"], ""),
    (tr, one) => {
      const [whose, ends, left] = tr.children;
      cell(whose, one.name, WHOSE[one.of] ?? one.of);
      say(ends, clock(one.not_after, now));
      const state = one.days_left < 0 ? "bad" : one.days_left < SOON_DAYS ? "warn" : "good";
      const days =
        one.days_left < 0
          ? "expired"
          : one.days_left < 1
            ? long(one.days_left * 86400)
            : `${Math.floor(one.days_left)}`;
      if (!left.firstChild) left.append(element("span", { class: "left" }));
      put(left.firstChild, state, days);
    },
  );
}

export function tunnels(all, now) {
  list(
    find("#tunnels tbody"),
    all,
    (one) => one.name,
    () => row(["number", "number", "number"], ""),
    (tr, one) => {
      const [name, live, over, failed] = tr.children;
      const failure = one.last_failure;
      const last = failure ? `Last failure ${clock(failure.at, now)}, ${failure.who}: ${failure.reason}` : "";
      cell(name, one.name, `${one.listen} → ${one.upstream.join(", ")}`, last);
      const { orderly, failed: count } = ended(one);
      say(live, `${one.sessions}`);
      say(over, `${orderly}`);
      say(failed, `${count}`);
    },
  );
}

export function process(snapshot, now) {
  const own = snapshot.certificates.find((one) => one.of === "own");
  const name = own ? own.name.replace(/^(dns|cn|ip|uri):/, "") : "pgtlsproxy";
  say(find("#name"), name);
  say(
    find("#process"),
    [
      `pgtlsproxy ${snapshot.version}`,
      `pid ${snapshot.pid}`,
      `up ${long(snapshot.uptime_seconds)}`,
      `${snapshot.sessions.length} of ${snapshot.limit} sessions`,
    ].join(", "),
  );
  const reload = snapshot.last_reload;
  const taken = `${plural(snapshot.reloads_good, "reload", "reloads")} taken`;
  const counts = `${taken}, ${snapshot.reloads_refused} refused since the start`;
  say(
    find("#reload"),
    reload
      ? `Last reload ${clock(reload.at, now)}, ${reload.ok ? "taken" : "refused"}; ${counts}.`
      : "No reload since the start.",
  );
  return name;
}

export function freshness(state, words, banner) {
  mark(find("#fresh"), "data-state", state);
  say(find("#fresh-text"), words);
  find("#gone").hidden = !banner;
  say(find("#gone"), banner);
}

// For screen readers: only when the answer changes.
export const announce = (words) => say(find("#said"), words);
