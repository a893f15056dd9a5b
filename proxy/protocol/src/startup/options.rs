//! The `options` parameter of a StartupMessage, as far as it sets application_name.
//!
//! PostgreSQL splits it (pg_split_opts) and reads it like a command line (process_postgres_switches), so a name in it
//! counts as much as one in a parameter of its own. Nothing else in it is looked at.

/// Every application name that these options could set.
pub(super) fn application_names(options: &[u8]) -> Vec<Vec<u8>> {
    let arguments = split(options);
    arguments
        .iter()
        .flat_map(|argument| assigned_names(argument))
        .collect()
}

const APPLICATION_NAME: &[u8] = b"application_name";

/// Splits `options` as pg_split_opts does: at blanks, unless a backslash stands before them.
fn split(options: &[u8]) -> Vec<Vec<u8>> {
    let mut arguments = Vec::new();
    let mut argument: Option<Vec<u8>> = None;
    let mut escaped = false;
    for byte in options {
        // isspace() of the C locale, which knows one blank more than Rust does.
        let blank = byte.is_ascii_whitespace() || *byte == 0x0b;
        if blank && !escaped {
            arguments.extend(argument.take());
            continue;
        }
        let argument = argument.get_or_insert_default();
        if *byte == b'\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            argument.push(*byte);
        }
    }
    arguments.extend(argument);
    arguments
}

/// The application names that one argument of `options` could set.
///
/// PostgreSQL reads them with getopt: `-c name=value`, `-cname=value`, `--name=value`, and also behind switches
/// without an argument, as in `-ecname=value` (measured on 15); which these are differs between versions. So an
/// assignment counts wherever it could stand: at the argument's beginning, or behind a `c` or `-`. That may find a name
/// too many, never one too few. In the name `-` counts as `_`, and case does not.
fn assigned_names(argument: &[u8]) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let mut before = None;
    let mut rest = argument;
    while let Some((first, next)) = rest.split_first() {
        if matches!(before, None | Some(b'c' | b'-')) {
            names.extend(assigned_name(rest).map(<[u8]>::to_vec));
        }
        before = Some(*first);
        rest = next;
    }
    names
}

fn assigned_name(assignment: &[u8]) -> Option<&[u8]> {
    let (name, rest) = assignment.split_at_checked(APPLICATION_NAME.len())?;
    let same = |(a, b): (&u8, &u8)| {
        (if *a == b'-' {
            b'_'
        } else {
            a.to_ascii_lowercase()
        }) == *b
    };
    name.iter()
        .zip(APPLICATION_NAME)
        .all(same)
        .then(|| rest.strip_prefix(b"="))?
}
