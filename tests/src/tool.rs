//! A program that is talked to over its input and output, such as `openssl s_client`.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::process::mortal;
use crate::wait::{PATIENCE, wait_for, wait_until};

/// A program that runs beside the test and is killed on drop.
#[derive(Debug)]
pub struct Tool {
    child: Child,
    input: Option<ChildStdin>,
    output: Heard,
    errors: Heard,
}

/// What was written to one of its outputs.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    fn listen(source: impl Read + Send + 'static) -> Self {
        let heard = Self::default();
        let all = heard.clone();
        thread::spawn(move || {
            let mut source = source;
            let mut piece = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = source.read(&mut piece) {
                all.0.lock().unwrap().extend_from_slice(&piece[..n]);
            }
        });
        heard
    }

    fn contains(&self, wanted: &[u8]) -> bool {
        let heard = self.0.lock().unwrap();
        heard.windows(wanted.len()).any(|window| window == wanted)
    }
}

impl Tool {
    /// Starts `program` with these arguments.
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        Self::spawn(mortal(program, "KILL").args(arguments))
    }

    /// Starts what this command says.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            input: child.stdin.take(),
            output: Heard::listen(child.stdout.take().unwrap()),
            errors: Heard::listen(child.stderr.take().unwrap()),
            child,
        }
    }

    /// Writes to its input.
    pub fn say(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("an input that was not closed");
        input.write_all(bytes).unwrap();
        input.flush().unwrap();
    }

    /// Closes its input.
    pub fn hang_up(&mut self) {
        self.input = None;
    }

    /// Everything that it wrote to its output so far.
    pub fn output(&self) -> Vec<u8> {
        self.output.0.lock().unwrap().clone()
    }

    /// Everything that it wrote to either.
    pub fn text(&self) -> String {
        let errors = self.errors.0.lock().unwrap();
        let output = self.output.0.lock().unwrap();
        [&output, &errors]
            .map(|heard| String::from_utf8_lossy(heard).into_owned())
            .join("\n")
    }

    /// Waits until either output says `wanted`.
    #[track_caller]
    pub fn wait_for_text(&self, wanted: &str) {
        wait_until(&format!("\"{wanted}\" from the program"), || {
            self.output.contains(wanted.as_bytes()) || self.errors.contains(wanted.as_bytes())
        });
    }

    /// Waits until it ends by itself; whether it was content.
    #[track_caller]
    pub fn wait_for_exit(&mut self) -> bool {
        wait_for("the program to end", PATIENCE, || {
            self.child.try_wait().unwrap()
        })
        .success()
    }

    /// Kills it, so that no close_notify is sent.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let text = self.text();
            let start = text.len().saturating_sub(4000);
            let start = (start..text.len()).find(|at| text.is_char_boundary(*at));
            println!(
                "---- what the program said last ----\n{}",
                &text[start.unwrap_or(0)..]
            );
        }
    }
}
