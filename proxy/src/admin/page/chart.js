// A chart of the last five minutes: lines over time as SVG, the newest at the right.

import { drawn, element, mark, say } from "./words.js";

export const WINDOW = 300;
// The line of the highest value lies at TOP; its label stands above it.
const [WIDTH, HEIGHT, TOP] = [300, 80, 18];
// Points further apart are not joined: nobody looked in between.
const GAP = 15;

// `lines`: [field, label]; `least`: the top of an empty chart; `show`: a value in words.
export function chart(title, lines, least, show) {
  const now = element("strong");
  const legend = element("span", { class: "legend" });
  if (lines.length > 1) {
    for (const [field, label] of lines) {
      const stroke = drawn("svg", { viewBox: "0 0 22 4", "aria-hidden": "true" });
      stroke.append(drawn("line", { class: `line ${field}`, x1: 0, y1: 2, x2: 22, y2: 2 }));
      legend.append(element("span", {}, stroke, label));
    }
  }
  const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  for (const y of [TOP, (TOP + HEIGHT) / 2, HEIGHT - 0.5]) {
    picture.append(drawn("line", { class: "grid", x1: 0, y1: y, x2: WIDTH, y2: y }));
  }
  const area = drawn("path", { class: "area" });
  const paths = lines.map(([field]) => drawn("path", { class: `line ${field}` }));
  picture.append(...(lines.length > 1 ? [] : [area]), ...paths);
  const top = element("span", { class: "most", "aria-hidden": "true" });
  const axis = element(
    "div",
    { class: "axis", "aria-hidden": "true" },
    element("span", {}, "5 min ago"),
    element("span", {}, "now"),
  );
  const plot = element("div", { class: "plot" }, picture, top);
  const figure = element("figure", {}, element("figcaption", {}, element("span", {}, title), now, legend), plot, axis);

  // `points` in the order of time, each with `t` in seconds.
  function draw(points, at, current) {
    const values = lines.flatMap(([field]) => points.map((point) => point[field]));
    const most = Math.max(0, ...values);
    const ceiling = Math.max(least, most);
    const x = (point) => (((point.t - at + WINDOW) / WINDOW) * WIDTH).toFixed(1);
    const y = (value) => (HEIGHT - 1 - (value / ceiling) * (HEIGHT - 1 - TOP)).toFixed(1);
    lines.forEach(([field], index) => {
      const steps = points.map((point, i) => {
        const joined = i > 0 && point.t - points[i - 1].t < GAP;
        return `${joined ? "L" : "M"}${x(point)} ${y(point[field])}`;
      });
      mark(paths[index], "d", steps.join(""));
      if (lines.length === 1) mark(area, "d", under(points, field, x, y));
    });
    say(now, current);
    say(top, show(ceiling));
    mark(picture, "aria-label", `${title} in the last five minutes: now ${current}, at most ${show(most)}`);
  }
  return { figure, draw };
}

function under(points, field, x, y) {
  let path = "";
  points.forEach((point, i) => {
    const joined = i > 0 && point.t - points[i - 1].t < GAP;
    const ends = i + 1 === points.length || points[i + 1].t - point.t >= GAP;
    path += joined ? "" : `M${x(point)} ${HEIGHT}`;
    path += `L${x(point)} ${y(point[field])}`;
    path += ends ? `L${x(point)} ${HEIGHT}Z` : "";
  });
  return path;
}
