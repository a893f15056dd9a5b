// Asks every two seconds, less often when hidden or unanswered, and says so when what is shown is not of now.

import { WINDOW } from "./chart.js";
import { LAGS, isStream, judge, keyOf, lagOf, rateOf } from "./judge.js";
import * as view from "./view.js";
import { clock, long } from "./words.js";

const EVERY = 2000;
const HIDDEN = 30000;
const UNANSWERED = 10000;
const PATIENCE = 5000;
// Without an answer for so long, the history of the proxy fills the gap.
const GAP = 10;

// The last good answer: when it came (seconds of this page), what it said.
const last = { at: 0, snapshot: null, judged: null, name: "pgtlsproxy", took: 0 };
let failures = 0;
let timer;
let ticker;
let asking = false;
let series = new Map();

const seconds = () => performance.now() / 1000;

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (!answer.ok) throw new Error(`it answered ${answer.status}: ${(await answer.text()).trim()}`);
  return answer.json();
}

async function look() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    if (await ask()) show();
  } finally {
    asking = false;
    const pause = failures > 0 ? EVERY * 2 ** (failures - 1) : last.took * 4000;
    const bounded = Math.min(UNANSWERED, Math.max(EVERY, pause));
    timer = setTimeout(look, document.hidden ? HIDDEN : bounded);
  }
}

async function ask() {
  const before = seconds();
  try {
    const snapshot = await get("/status.json");
    const stale = !last.snapshot || seconds() - last.at > GAP || snapshot.started !== last.snapshot.started;
    if (stale) series = remembered(await get("/history.json"), seconds());
    Object.assign(last, { snapshot, at: seconds(), took: seconds() - before });
    failures = 0;
    add(snapshot, last.at);
    return true;
  } catch (error) {
    failures += 1;
    unanswered(error);
    return false;
  }
}

function remembered(history, at) {
  const number = (value) => value ?? 0;
  return new Map(
    history.sessions.map((session) => {
      const points = session.rate.map((rate, i) => ({
        t: at - (session.rate.length - 1 - i) * history.every_seconds,
        rate,
        ...Object.fromEntries(LAGS.map((which) => [which, number(session[which][i])])),
      }));
      return [keyOf(session), points];
    }),
  );
}

function add(snapshot, at) {
  const next = new Map();
  for (const session of snapshot.sessions.filter((one) => isStream(one) || series.has(keyOf(one)))) {
    const points = series.get(keyOf(session)) ?? [];
    const lags = LAGS.map((which) => [which, lagOf(session, which).seconds ?? 0]);
    points.push({ t: at, rate: rateOf(session), ...Object.fromEntries(lags) });
    next.set(
      keyOf(session),
      points.filter((point) => at - point.t <= WINDOW),
    );
  }
  series = next;
}

function show() {
  clearInterval(ticker);
  const { snapshot, at } = last;
  const now = Date.parse(snapshot.at);
  const judged = judge(snapshot, series, at, now);
  last.judged = judged;
  last.name = view.process(snapshot, now);
  view.answers(judged);
  view.problems(judged.problems, now);
  view.sessions(snapshot, judged, series, at, now);
  view.certificates(snapshot.certificates, now);
  view.tunnels(snapshot.tunnels, now);
  view.freshness("good", `live, ${clock(now, now)} UTC`, "");
  const lag = { good: "no", warn: "too far", unknown: "not known" }[judged.behind.state];
  view.announce(`${judged.streaming.big}. Behind: ${lag}. Wrong: ${judged.wrong.big}.`);
  const count = judged.problems.length > 0 ? ` (${judged.problems.length})` : "";
  document.title = `${judged.streaming.big}${count} · ${last.name}`;
  document.body.dataset.live = "true";
}

function whyOf(error) {
  if (error.name === "TimeoutError") return `it did not answer within ${PATIENCE / 1000} s`;
  if (error instanceof TypeError) return "nothing answers there: it was stopped, or the way to it is cut";
  return error.message;
}

function unanswered(error) {
  const why = whyOf(error);
  const then = last.snapshot && Date.parse(last.snapshot.at);
  const tell = () => {
    const ago = long(seconds() - last.at);
    const [words, more] = last.snapshot
      ? [`not live, ${ago} old`, ` for ${ago}: ${why}. What is shown below is from ${clock(then, then)} UTC.`]
      : ["no answer", `: ${why}.`];
    view.freshness("bad", words, `No answer from pgtlsproxy${more}`);
  };
  clearInterval(ticker);
  tell();
  ticker = setInterval(tell, 1000);
  const unknown = (was) => ({ state: "unknown", big: "Not known", detail: was ? `It was: ${was.big}` : "No answer." });
  const since = last.snapshot ? `Since ${clock(then, then)}: ` : "";
  view.answers({
    streaming: unknown(last.judged?.streaming),
    behind: unknown(last.judged?.behind),
    wrong: { state: "bad", big: "No answer", detail: `${since}${why}` },
  });
  view.announce("No answer from pgtlsproxy. What is shown is old.");
  document.title = `No answer · ${last.name}`;
  document.body.dataset.live = "false";
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});
const asked = { state: "unknown", big: "Asking", detail: "" };
view.answers({ streaming: asked, behind: asked, wrong: asked });
look();
