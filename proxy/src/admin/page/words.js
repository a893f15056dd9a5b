// Figures and times in words, and elements by textContent alone: what a peer wrote never becomes markup.

const SVG = "http://www.w3.org/2000/svg";

export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Only what changed is touched, so that a selection stays.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// One child for each item, made once and then kept up to date, in the items' order.
export function list(parent, items, key, make, update) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  const taken = new Map();
  for (const item of items) {
    const count = taken.get(key(item)) ?? 0;
    taken.set(key(item), count + 1);
    const name = `${key(item)} ${count}`;
    let child = before.get(name);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = name;
    }
    before.delete(name);
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of before.values()) child.remove();
}

export function bytes(count) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (count < 1000) return unit === "B" ? `${Math.round(count)} B` : `${count.toFixed(1)} ${unit}`;
    count /= 1024;
  }
  return `${count.toFixed(1)} TiB`;
}

export function lasting(seconds) {
  if (seconds < 0.9995) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 99.95) return `${seconds.toFixed(1)} s`;
  return long(seconds);
}

export function long(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [days, hours, minutes] = [
    Math.floor(whole / 86400),
    Math.floor(whole / 3600) % 24,
    Math.floor(whole / 60) % 60,
  ];
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

// The time alone where it is of the same day as `now`; both in milliseconds.
export function clock(at, now) {
  const [day, time] = new Date(at).toISOString().slice(0, 19).split("T");
  return day === new Date(now).toISOString().slice(0, 10) ? time : `${day} ${time}`;
}

export function plural(count, one, many) {
  return `${count} ${count === 1 ? one : many}`;
}

const SIGNS = {
  good: [
    ["circle", { cx: 8, cy: 8, r: 7 }],
    ["path", { d: "M4.8 8.3l2.2 2.2 4.2-4.6", class: "cut" }],
  ],
  warn: [
    ["path", { d: "M8 1l7.2 13.2H.8z" }],
    ["path", { d: "M8 5.6v4M8 11.6v.6", class: "cut" }],
  ],
  bad: [
    ["path", { d: "M5 1h6l4 4v6l-4 4H5l-4-4V5z" }],
    ["path", { d: "M5.4 5.4l5.2 5.2M10.6 5.4l-5.2 5.2", class: "cut" }],
  ],
  unknown: [["circle", { cx: 8, cy: 8, r: 6.2, class: "ring" }]],
};

// Shape and colour of a state; the words stand beside it.
export function sign(state) {
  const shapes = SIGNS[state].map(([tag, attributes]) => drawn(tag, attributes));
  return drawn("svg", { class: `sign ${state}`, viewBox: "0 0 16 16", "aria-hidden": "true" }, ...shapes);
}
