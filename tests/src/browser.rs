//! Debian's Chromium without a screen, driven over the DevTools protocol: JSON messages that end with a zero byte, on
//! two pipes (`--remote-debugging-pipe`), so that no port is opened and no client library is needed.
//! <https://chromedevtools.github.io/devtools-protocol/>

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};

use crate::files::Scratch;
use crate::process::{mortal, run};

/// A browser on a loaded machine is slow, and a page that got no answer asks less often.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// A browser with one page. It ends on drop.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    /// Events that were not asked for yet.
    events: VecDeque<Value>,
    asked: u64,
    /// Of the page.
    session: String,
    _profile: Scratch,
}

impl Browser {
    /// Starts it with an empty page, or says that there is none and gives nothing: the test is then skipped. `./test`
    /// installs it where that can be done.
    pub fn start() -> Option<Self> {
        if let Err(error) = run(Command::new("chromium").arg("--version")) {
            println!("skipped: Chromium cannot be run here: {error}");
            return None;
        }
        let profile = Scratch::new("chromium");
        let mut chromium = mortal("sh", "KILL");
        // It takes commands on descriptor 3 and answers on 4. Our own page is no reason for a sandbox, which root
        // and containers cannot have.
        chromium
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >&2", "sh"])
            .args(["chromium", "--headless", "--remote-debugging-pipe"])
            .args(["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("HOME", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = chromium.spawn().unwrap();
        let (to, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, from) = channel();
        std::thread::spawn(move || listen(out, &sender));
        let mut browser = Self {
            child,
            to,
            from,
            events: VecDeque::new(),
            asked: 0,
            session: String::new(),
            _profile: profile,
        };
        let page = browser.ask("Target.createTarget", json!({"url": "about:blank"}));
        let target = json!({"targetId": page["targetId"], "flatten": true});
        let attached = browser.ask("Target.attachToTarget", target);
        attached["sessionId"]
            .as_str()
            .unwrap()
            .clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network", "Audits"] {
            browser.ask(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Goes to an address and waits until it is loaded.
    #[track_caller]
    pub fn open(&mut self, url: &str) {
        self.events.clear();
        let gone = self.ask("Page.navigate", json!({"url": url}));
        assert!(gone["errorText"].is_null(), "{url}: {gone}");
        self.wait_until("the page to be loaded", "document.readyState == 'complete'");
    }

    /// What a JavaScript expression yields.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let question =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.ask("Runtime.evaluate", question);
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].take()
    }

    /// The text of the first element that a selector finds, as a reader sees it; empty if there is none.
    #[track_caller]
    pub fn text(&mut self, selector: &str) -> String {
        let found = self.eval(&format!(
            "document.querySelector({})?.innerText ?? ''",
            json!(selector)
        ));
        found.as_str().unwrap().to_owned()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, expression: &str) {
        let start = Instant::now();
        while self.eval(expression) != json!(true) {
            if start.elapsed() > PATIENCE {
                let shown = self.text("body");
                panic!(
                    "waited {PATIENCE:?} in vain: {what}: {expression}\nthe page shows:\n{shown}"
                );
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What the page or the browser complained of since it was opened: exceptions, errors on the console, violations
    /// of the Content-Security-Policy, what could not be loaded.
    pub fn complaints(&mut self) -> Vec<String> {
        // What was said before this question is answered has come.
        self.eval("0");
        let complaints = self
            .events
            .iter()
            .filter(|event| match event["method"].as_str() {
                Some("Runtime.exceptionThrown" | "Audits.issueAdded" | "Network.loadingFailed") => {
                    true
                }
                Some("Runtime.consoleAPICalled") => ["error", "warning", "assert"]
                    .iter()
                    .any(|kind| event["params"]["type"] == *kind),
                Some("Log.entryAdded") => event["params"]["entry"]["level"] != "verbose",
                _ => false,
            });
        complaints.map(ToString::to_string).collect()
    }

    /// The addresses that were asked for since the page was opened.
    pub fn requests(&mut self) -> Vec<String> {
        self.eval("0");
        let sent = self
            .events
            .iter()
            .filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| {
            event["params"]["request"]["url"]
                .as_str()
                .map(str::to_owned)
        })
        .collect()
    }

    /// Shows the page in a window of this width, light or dark.
    pub fn show(&mut self, width: u32, height: u32, dark: bool) {
        let window = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.ask("Emulation.setDeviceMetricsOverride", window);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.ask("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Writes what is seen, to the page's end, as PNG: where `PGTLSPROXY_TEST_SCREENSHOTS` names a directory, for
    /// people to look at.
    pub fn picture(&mut self, name: &str) {
        let Some(dir) = std::env::var_os("PGTLSPROXY_TEST_SCREENSHOTS") else {
            return;
        };
        let how = json!({"format": "png", "captureBeyondViewport": true});
        let picture = self.ask("Page.captureScreenshot", how);
        let png = Base64::decode_vec(picture["data"].as_str().unwrap()).unwrap();
        fs::write(Path::new(&dir).join(format!("{name}.png")), png).unwrap();
    }

    #[track_caller]
    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let mut question = json!({"id": self.asked, "method": method, "params": params});
        if !self.session.is_empty() {
            question["sessionId"] = json!(self.session);
        }
        self.to
            .write_all(format!("{question}\0").as_bytes())
            .unwrap();
        loop {
            let mut answer = self
                .from
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|error| panic!("{method}: Chromium does not answer: {error}"));
            if answer["id"] == self.asked {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].take();
            }
            self.events.push_back(answer);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(out: ChildStdout, sender: &Sender<Value>) {
    for message in BufReader::new(out).split(0).map_while(Result::ok) {
        let Ok(message) = serde_json::from_slice(&message) else {
            return;
        };
        if sender.send(message).is_err() {
            return;
        }
    }
}
