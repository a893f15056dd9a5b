// From a snapshot to the three answers and to what deserves a look. Pure: nothing here touches the page.

import { bytes, clock, lasting, long, plural } from "./words.js";

// A standby replies at least every 10 s (wal_receiver_status_interval), so a lag below that says nothing yet.
export const LATE = 15;
// By default something comes by every 30 s even in a quiet stream (half of wal_sender_timeout).
const SILENT = 60;
// A failure that is older, or that a session followed, is history.
const RECENT = 600;
const DAY = 86400;

export const LAGS = ["write", "flush", "apply"];
const REPLICATING = ["physical", "logical", "basebackup"];

export const keyOf = (session) => `${session.tunnel} ${session.id ?? session.peer}`;
export const nameOf = (session) => session.identity ?? session.peer;
export const isCopy = (session) => session.activity === "basebackup";
// One of kind basebackup brings the WAL of a copy, and ends with it.
export const isStream = (session) => session.activity === "streaming" && session.kind !== "basebackup";
export const replicates = (session) => REPLICATING.includes(session.kind);
export const rateOf = (session) => session.rate_to_upstream + session.rate_to_downstream;
export const lagOf = (session, which) => session.replication?.[`${which}_lag`] ?? { bytes: null, seconds: null };

const RANK = { good: 0, unknown: 1, warn: 2, bad: 3 };
const worst = (states) => states.reduce((one, other) => (RANK[other] > RANK[one] ? other : one), "good");

// Connections of a tunnel that are over: in order, and not.
export function ended(tunnel) {
  const sum = (what) => tunnel.ended.reduce((count, one) => count + one[what], 0);
  const failed = sum("failed");
  return { orderly: sum("connections") - failed, failed };
}

// The first of the three that is late tells where it hangs; `near`: whether we stand beside the standby.
const CAUSES = {
  write: (near) =>
    near
      ? ["The walreceiver stands still.", "Look at the standby: its walreceiver, its processor and memory."]
      : [
          "The walreceiver stands still, or the network is slow or cut.",
          "Run pgtlsproxy doctor, and look at the standby's side: if nothing lags there, it is the network.",
        ],
  flush: () => [
    "The standby's disk is slow.",
    "Look at the standby's disk: what else writes there, and how long it takes.",
  ],
  apply: () => [
    "Replay is paused, or slow.",
    "On the standby: select pg_is_wal_replay_paused(), and look in pg_stat_activity for queries that hold it up.",
  ],
};

// How far behind a stream is: the worst of its lags, and what that means.
function lateness(session, near) {
  const lags = LAGS.map((which) => ({ which, ...lagOf(session, which) }));
  const first = lags.find((lag) => lag.seconds >= LATE);
  const top = lags.reduce((one, other) => (distance(other) >= distance(one) ? other : one));
  const [cause, way] = first ? CAUSES[first.which](near) : [];
  return { top, first, cause, way, silence: silence(session.replication ?? {}) };
}

// Seconds count before bytes.
const distance = (lag) => (lag.seconds ?? 0) * 2 ** 50 + (lag.bytes ?? -1);

function silence(stream) {
  const ages = ["wal", "keepalive", "reply"].map((what) => stream[`${what}_age_seconds`]);
  const known = ages.filter((age) => typeof age === "number");
  return known.length > 0 ? Math.min(...known) : 0;
}

// Since when a lag is too long, in seconds of `points`: when the first WAL that was late then had come by.
function lateSince(points, which, at, seconds) {
  let since = at - seconds;
  for (const point of [...points].reverse()) {
    if (point[which] < LATE) break;
    since = Math.min(since, point.t - point[which]);
  }
  return since;
}

// `series`: session key to points; `at`: now, in seconds of those points; `now`: the proxy's clock, in milliseconds.
export function judge(snapshot, series, at, now) {
  const sides = new Map(snapshot.tunnels.map((tunnel) => [tunnel.name, tunnel.side]));
  const near = (session) => sides.get(session.tunnel) === "client";
  const streams = snapshot.sessions.filter(isStream);
  const late = new Map(streams.map((session) => [session, lateness(session, near(session))]));
  const ago = (time) => (now - Date.parse(time)) / 1000;
  const seen = { snapshot, series, streams, late, near, ago, at, now };
  const problems = [...slow(seen), ...ends(seen), ...failures(seen), ...told(snapshot)];
  problems.sort((one, other) => RANK[other.state] - RANK[one.state]);
  return { late, near, problems, streaming: streaming(seen), behind: behind(late), wrong: wrong(problems, now) };
}

// What deserves a look: `state`, a `key` that stays, `what`, `why` and `way` out, `since` or `at` (milliseconds).
function* slow({ series, late, near, at, now }) {
  for (const [session, { first, cause, way, silence }] of late) {
    const [key, name] = [keyOf(session), nameOf(session)];
    if (first) {
      const since = now - (at - lateSince(series.get(key) ?? [], first.which, at, first.seconds)) * 1000;
      const lag = lasting(first.seconds);
      const what = near(session) ? `This standby is ${lag} behind ${name}` : `${name} is ${lag} behind`;
      yield { state: "warn", key: `late ${key}`, what: `${what} in ${first.which}`, why: cause, way, since };
    }
    if (silence >= SILENT) {
      const what = `Nothing came by in the stream of ${name}`;
      const why = "Not even a keepalive: a path that is cut, or a host that stands still.";
      const since = now - silence * 1000;
      yield { state: "warn", key: `silent ${key}`, what, why, way: "Run pgtlsproxy doctor on both hosts.", since };
    }
  }
}

// Streams that ended and did not come back. One that closed in order beside others is soon forgotten.
function* ends({ snapshot, streams, ago }) {
  const way = "Run pgtlsproxy doctor, on either host.";
  const last = latest(snapshot, "last_stream");
  for (const { name, last_stream: gone } of snapshot.tunnels) {
    if (!gone || streams.some((session) => session.tunnel === name && nameOf(session) === gone.who)) continue;
    const none = streams.length === 0 && gone === last;
    if (!none && ago(gone.at) > (gone.end === "finished" ? RECENT : DAY)) continue;
    const [what, since] = [`The stream of ${gone.who} ended`, Date.parse(gone.at)];
    yield { state: none ? "bad" : "warn", key: `ended ${name}`, what, why: gone.reason, way, since };
  }
}

function* failures({ snapshot, near, ago }) {
  for (const { name, last_failure: failure, last_stream: gone } of snapshot.tunnels) {
    if (!failure || ago(failure.at) > RECENT || (failure.at === gone?.at && failure.reason === gone.reason)) continue;
    // It is over once a session followed: on a client's tunnel any, on a server's one of the same peer.
    const after = snapshot.sessions.filter((session) => session.tunnel === name && session.since >= failure.at);
    if (after.some((session) => near(session) || nameOf(session) === failure.who)) continue;
    const what = `${name}: a connection of ${failure.who} failed`;
    yield { state: "warn", key: `failure ${name}`, what, why: failure.reason, way: "", at: Date.parse(failure.at) };
  }
}

// What the proxy itself says.
function* told({ warnings, last_reload: reload }) {
  for (const { id, what, why, way_out: way, since } of warnings) {
    yield { state: "warn", key: `${id} ${what}`, what: `${what} [${id}]`, why, way, since: since && Date.parse(since) };
  }
  if (reload && !reload.ok) {
    const [what, why] = ["The last reload was refused; what was before goes on", reload.problems.join("; ")];
    const way = "Mend it; pgtlsproxy check says whether it is right.";
    yield { state: "bad", key: "reload", what, why, way, since: Date.parse(reload.at) };
  }
}

function latest(snapshot, which) {
  const ends = snapshot.tunnels.map((tunnel) => tunnel[which]).filter(Boolean);
  return ends.reduce((one, other) => (one && one.at >= other.at ? one : other), null);
}

function streaming({ snapshot, streams, near, ago }) {
  if (streams.length > 0) {
    const longest = long(Math.max(...streams.map((session) => session.seconds)));
    const [first] = streams;
    const one = `${near(first) ? "from" : "to"} ${nameOf(first)}, for ${longest}`;
    const detail = streams.length === 1 ? one : `${streams.length} streams, the oldest for ${longest}`;
    return { state: "good", big: "Streaming", detail };
  }
  const copies = snapshot.sessions.filter(isCopy).length;
  if (copies > 0) {
    const detail = `${plural(copies, "copy is", "copies are")} being made; nothing streams`;
    return { state: "good", big: "Base backup", detail };
  }
  const [gone, failure] = [latest(snapshot, "last_stream"), latest(snapshot, "last_failure")];
  const obstacle = failure && ago(failure.at) <= RECENT ? failure.reason : "";
  if (gone) {
    // What keeps it from coming back says more than how it ended.
    const reason = failure?.at > gone.at ? obstacle || gone.reason : gone.reason;
    return { state: "bad", big: "Not streaming", detail: `for ${long(ago(gone.at))}: ${reason}` };
  }
  const waiting = snapshot.sessions.filter(replicates).length;
  const idle = `${plural(waiting, "replication session is", "replication sessions are")} open, and idle`;
  const none = `No stream came in ${long(snapshot.uptime_seconds)} since the start${obstacle && `: ${obstacle}`}`;
  return { state: "unknown", big: "Not streaming", detail: waiting > 0 ? idle : none };
}

function behind(late) {
  if (late.size === 0) return { state: "unknown", big: "Not known", detail: "Nothing streams." };
  const [[session, { top, first, cause }]] = [...late].sort(
    ([, one], [, other]) => distance(other.top) - distance(one.top),
  );
  const where = `in ${top.which}${late.size > 1 ? `, ${nameOf(session)}` : ""}`;
  const amount = top.bytes ? `, ${bytes(top.bytes)}` : "";
  if (first) return { state: "warn", big: lasting(top.seconds), detail: `${where}${amount}. ${cause}` };
  if (top.seconds) return { state: "good", big: lasting(top.seconds), detail: `${where}${amount}` };
  if (top.bytes) return { state: "good", big: bytes(top.bytes), detail: `${where}, not confirmed yet` };
  if (top.bytes === null) return { state: "unknown", big: "Not known", detail: "No reply of a standby came yet." };
  return { state: "good", big: "Caught up", detail: "All that was sent is confirmed." };
}

function wrong(problems, now) {
  if (problems.length === 0) return { state: "good", big: "Nothing", detail: "No warning stands." };
  const [first] = problems;
  const since = first.since ? ` Since ${clock(first.since, now)}.` : first.at ? ` Last ${clock(first.at, now)}.` : "";
  const more = problems.length > 1 ? ` And ${problems.length - 1} more.` : "";
  return {
    state: worst(problems.map((problem) => problem.state)),
    big: plural(problems.length, "thing", "things"),
    detail: `${first.what}.${since}${more}`,
  };
}
