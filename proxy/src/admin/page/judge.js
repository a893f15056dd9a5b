// From a snapshot to the three answers and to what deserves a look. Pure: nothing here touches the page.

import { bytes, clock, lasting, long, plural } from "./words.js";

// A standby replies at least every 10 s (wal_receiver_status_interval), so a lag below that says nothing yet.
const LATE = 15;
// By default something comes by every 30 s even in a quiet stream (half of wal_sender_timeout).
const SILENT = 60;
// A failure that is older, or that a session followed, is history.
const RECENT = 600;

export const LAGS = ["write", "flush", "apply"];
const REPLICATING = ["physical", "logical"];

export const keyOf = (session) => `${session.tunnel} ${session.id ?? session.peer}`;
export const nameOf = (session) => session.identity ?? session.peer;
export const isCopy = (session) => session.activity === "basebackup";
export const isStream = (session) => session.activity === "streaming";
export const replicates = (session) => isCopy(session) || isStream(session) || REPLICATING.includes(session.kind);
export const rateOf = (session) => session.rate_to_upstream + session.rate_to_downstream;
export const lagOf = (session, which) => session.replication?.[`${which}_lag`] ?? { bytes: null, seconds: null };

const RANK = { good: 0, unknown: 1, warn: 2, bad: 3 };
const worst = (states) => states.reduce((one, other) => (RANK[other] > RANK[one] ? other : one), "good");

// Connections of a tunnel that are over: in order, and not.
const ORDERLY = ["finished", "stopped", "cancelled", "silent", "left", "node"];
export function ended(tunnel) {
  const sum = (orderly) =>
    tunnel.ended.filter(({ end }) => ORDERLY.includes(end) === orderly).reduce((count, one) => count + one.connections, 0);
  return { orderly: sum(true), failed: sum(false) };
}

// The first of the three that is late tells where it hangs; `near`: whether we stand beside the standby.
const CAUSES = {
  write: (near) => near
    ? ["The walreceiver stands still.", "Look at the standby: its walreceiver, its processor and memory."]
    : ["The walreceiver stands still, or the network is slow or cut.", "Run pgtlsproxy doctor, and look at the standby's side: if nothing lags there, it is the network."],
  flush: () => ["The standby's disk is slow.", "Look at the standby's disk: what else writes there, and how long it takes."],
  apply: () => ["Replay is paused, or slow.", "On the standby: select pg_is_wal_replay_paused(), and look in pg_stat_activity for queries that hold replay up."],
};

// How far behind a stream is: the worst of its lags, and what that means.
export function lateness(session, near) {
  const lags = LAGS.map((which) => ({ which, ...lagOf(session, which) }));
  const first = lags.find((lag) => lag.seconds >= LATE);
  const top = lags.reduce((one, other) => ((other.seconds ?? 0) >= (one.seconds ?? 0) ? other : one));
  const stream = session.replication ?? {};
  const ages = ["wal", "keepalive", "reply"].map((what) => stream[`${what}_age_seconds`]).filter((age) => age !== null && age !== undefined);
  const silence = ages.length > 0 ? Math.min(...ages) : 0;
  const [cause, way] = first ? CAUSES[first.which](near) : [];
  return { seconds: top.seconds, bytes: top.bytes, which: top.which, late: first !== undefined, first: first?.which, cause, way, silence };
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
  const problems = [];
  const gone = lastStream(snapshot);

  for (const [session, one] of late) {
    if (one.late) {
      const lag = lagOf(session, one.first).seconds;
      const since = now - (at - lateSince(series.get(keyOf(session)) ?? [], one.first, at, lag)) * 1000;
      problems.push({ state: "warn", key: `late ${keyOf(session)}`, since, what: `${nameOf(session)} is ${lasting(lag)} behind in ${one.first}`, why: one.cause, way: one.way });
    }
    if (one.silence >= SILENT) {
      problems.push({ state: "warn", key: `silent ${keyOf(session)}`, since: now - one.silence * 1000, what: `Nothing came by in the stream of ${nameOf(session)}`, why: "Not even a keepalive: a path that is cut, or a host that stands still.", way: "Run pgtlsproxy doctor on both hosts." });
    }
  }
  if (streams.length === 0 && gone) {
    problems.push({ state: "bad", key: "no stream", since: Date.parse(gone.at), what: `The stream of ${gone.who} ended`, why: gone.reason, way: "Run pgtlsproxy doctor, on either host." });
  }
  for (const tunnel of snapshot.tunnels) {
    const failure = tunnel.last_failure;
    if (!failure || ago(failure.at) > RECENT || failure === gone || (gone && failure.at === gone.at && failure.reason === gone.reason)) continue;
    const healed = snapshot.sessions.some((session) => session.tunnel === tunnel.name && session.since >= failure.at && (session.identity ?? session.peer) === failure.who);
    if (!healed) problems.push({ state: "warn", key: `failure ${tunnel.name}`, since: Date.parse(failure.at), what: `${tunnel.name}: a connection of ${failure.who} failed`, why: failure.reason, way: "" });
  }
  for (const warning of snapshot.warnings) {
    problems.push({ state: "warn", key: `${warning.id} ${warning.what}`, since: warning.since && Date.parse(warning.since), what: `${warning.what} [${warning.id}]`, why: warning.why, way: warning.way_out });
  }
  const reload = snapshot.last_reload;
  if (reload && !reload.ok) {
    problems.push({ state: "bad", key: "reload", since: Date.parse(reload.at), what: "The last reload was refused; what was before goes on", why: reload.problems.join("; "), way: "Mend it; pgtlsproxy check says whether it is right." });
  }
  problems.sort((one, other) => RANK[other.state] - RANK[one.state]);
  return {
    late,
    near,
    problems,
    streaming: streaming(snapshot, streams, near, gone, ago),
    behind: behind(late),
    wrong: wrong(problems, now),
  };
}

function lastStream(snapshot) {
  const gone = snapshot.tunnels.map((tunnel) => tunnel.last_stream).filter(Boolean);
  return gone.reduce((one, other) => (one && one.at >= other.at ? one : other), null);
}

function streaming(snapshot, streams, near, gone, ago) {
  if (streams.length > 0) {
    const longest = Math.max(...streams.map((session) => session.seconds));
    const [first] = streams;
    const detail = streams.length === 1
      ? `${near(first) ? "from" : "to"} ${nameOf(first)}, for ${long(first.seconds)}`
      : `${streams.length} streams, the oldest for ${long(longest)}`;
    return { state: "good", big: "Streaming", detail };
  }
  const copies = snapshot.sessions.filter(isCopy);
  if (copies.length > 0) {
    return { state: "good", big: "Base backup", detail: `${plural(copies.length, "copy is", "copies are")} being made; nothing streams` };
  }
  if (gone) return { state: "bad", big: "Not streaming", detail: `for ${long(ago(gone.at))}: ${gone.reason}` };
  const waiting = snapshot.sessions.filter(replicates).length;
  const detail = waiting > 0
    ? `${plural(waiting, "replication session is", "replication sessions are")} open, and idle`
    : `No stream came in ${long(snapshot.uptime_seconds)} since the start`;
  return { state: "unknown", big: "Not streaming", detail };
}

function behind(late) {
  if (late.size === 0) return { state: "unknown", big: "Not known", detail: "Nothing streams." };
  const [[session, most]] = [...late].sort(([, one], [, other]) => (other.seconds ?? 0) - (one.seconds ?? 0));
  const unconfirmed = most.bytes ? `, ${bytes(most.bytes)}` : "";
  if (most.late) return { state: "warn", big: lasting(most.seconds), detail: `in ${most.first}${unconfirmed}, ${nameOf(session)}. ${most.cause}` };
  if (!most.seconds) return { state: "good", big: "Caught up", detail: "All that was sent is confirmed." };
  return { state: "good", big: lasting(most.seconds), detail: `in ${most.which}${unconfirmed}` };
}

function wrong(problems, now) {
  if (problems.length === 0) return { state: "good", big: "Nothing", detail: "No warning stands." };
  const [first] = problems;
  const since = first.since ? ` Since ${clock(first.since, now)}.` : "";
  const more = problems.length > 1 ? ` And ${problems.length - 1} more.` : "";
  return { state: worst(problems.map((problem) => problem.state)), big: plural(problems.length, "thing", "things"), detail: `${first.what}.${since}${more}` };
}
