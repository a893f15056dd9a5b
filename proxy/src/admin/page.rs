//! The page for people at `/`: its files, as they are embedded. It reads `/status.json` and `/history.json` and shows
//! them; there is nothing to click that would change anything.

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Media type and text of one of its files.
pub(super) fn file(path: &str) -> Option<(&'static str, &'static str)> {
    Some(match path {
        "/" => (HTML, include_str!("page/index.html")),
        "/page.css" => (CSS, include_str!("page/page.css")),
        "/page.js" => (JAVASCRIPT, include_str!("page/page.js")),
        "/chart.js" => (JAVASCRIPT, include_str!("page/chart.js")),
        "/judge.js" => (JAVASCRIPT, include_str!("page/judge.js")),
        "/view.js" => (JAVASCRIPT, include_str!("page/view.js")),
        "/words.js" => (JAVASCRIPT, include_str!("page/words.js")),
        "/icon.svg" => (SVG, include_str!("page/icon.svg")),
        _ => return None,
    })
}
