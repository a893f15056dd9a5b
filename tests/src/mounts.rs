//! A host whose directories are its own: a private mount namespace, in which `/usr`, `/etc` and `/var` can be written to and
//! the machine's own stay as they are.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::files::Scratch;
use crate::process::mortal;

/// The namespace; it and what was written in it go on drop.
#[derive(Debug)]
pub struct Mounts {
    holder: Child,
    _layers: Scratch,
}

impl Mounts {
    /// Makes one, and runs this shell script in it; none where only root could. `/run` begins empty.
    pub fn new(script: &str) -> Option<Self> {
        let layers = Scratch::new("mounts");
        let layer = layers.path().display();
        // The layers lie on a file system that can be those of an overlay, whatever /tmp is on.
        let whole = format!(
            "set -e\nmount -t tmpfs none {layer}\n\
             for tree in usr etc var; do\n\
                 mkdir -p {layer}/$tree/upper {layer}/$tree/work\n\
                 mount -t overlay none /$tree -o lowerdir=/$tree,upperdir={layer}/$tree/upper,workdir={layer}/$tree/work\n\
             done\n\
             mount -t tmpfs -o mode=755 none /run\necho mounted\n{script}\necho ready\nexec sleep infinity\n"
        );
        let mut holder = mortal("unshare", "KILL")
            .args(["--mount", "--propagation", "private", "sh", "-c", &whole])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut lines = BufReader::new(holder.stdout.take()?).lines();
        let mut next = || lines.next().and_then(Result::ok).unwrap_or_default();
        let (mounted, ready) = (next(), next());
        let made = Self {
            holder,
            _layers: layers,
        };
        if mounted != "mounted" {
            return None;
        }
        assert_eq!(ready, "ready", "the script failed, see above");
        Some(made)
    }

    /// A command in it, that ends with the thread that starts it.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = mortal("nsenter", "KILL");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .arg("--")
            .arg(program.as_ref());
        command
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
