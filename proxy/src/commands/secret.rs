//! A secret as a line of standard input: never from the command line, which everybody on the host can see.

use std::io::{self, BufRead, ErrorKind};

use zeroize::Zeroizing;

use crate::problem::Problem;

/// Longer than any token or password.
const LONGEST: usize = 4096;

/// One line, with its end.
pub(super) fn line() -> io::Result<Zeroizing<String>> {
    read(io::stdin().lock())
}

/// The password of the role by which standbys log in.
pub(super) fn password() -> Result<Zeroizing<String>, Problem> {
    eprintln!("Password of the role, one line on standard input:");
    let none = |why: &str| {
        let way_out = "type one, or pipe it in";
        Problem::new("G02", "no password was given", why, way_out)
    };
    let line = line().map_err(|error| none(&error.to_string()))?;
    match line.trim_end_matches(['\r', '\n']) {
        "" => Err(none("--password reads it from standard input")),
        password => Ok(Zeroizing::new(password.to_owned())),
    }
}

fn read(input: impl BufRead) -> io::Result<Zeroizing<String>> {
    // Room for all of it at once: a String that grows would leave copies behind.
    let mut line = Zeroizing::new(String::with_capacity(LONGEST));
    let limit = u64::try_from(LONGEST).unwrap_or(u64::MAX);
    let read = input.take(limit).read_line(&mut line)?;
    if read == LONGEST && !line.ends_with('\n') {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            "the line is longer than 4096 bytes",
        ));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_an_end() {
        assert_eq!(*read(&b"secret\nnext\n"[..]).unwrap(), "secret\n");
        assert_eq!(*read(&b"secret"[..]).unwrap(), "secret");
        let long = "x".repeat(LONGEST - 1);
        let with_end = format!("{long}\n");
        assert_eq!(*read(with_end.as_bytes()).unwrap(), with_end);
        assert!(read(format!("{long}xx\n").as_bytes()).is_err());
    }
}
