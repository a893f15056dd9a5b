//! libpq's connection strings of keywords and values (documentation, 34.1.1.1): read as libpq reads them, and
//! written so that nothing in a value can break out of it.

use std::fmt;

/// Keywords and values in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Conninfo(pub(crate) Vec<(String, String)>);

impl Conninfo {
    /// As libpq's conninfo_parse reads it; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let mut pairs = Vec::new();
        let mut rest = text.trim_ascii_start();
        while !rest.is_empty() {
            let end = rest
                .find(|c: char| c == '=' || c.is_ascii_whitespace())
                .ok_or("a keyword without `=`")?;
            if end == 0 {
                return Err("a value without a keyword");
            }
            let (keyword, after) = rest.split_at(end);
            let value = after
                .trim_ascii_start()
                .strip_prefix('=')
                .ok_or("a keyword without `=`")?;
            let (value, after) = match value.trim_ascii_start() {
                quoted if quoted.starts_with('\'') => {
                    quoted_value(quoted.get(1..).unwrap_or_default())?
                }
                plain => plain_value(plain),
            };
            pairs.push((keyword.to_owned(), value));
            rest = after.trim_ascii_start();
        }
        Ok(Self(pairs))
    }

    /// With one more keyword.
    pub(crate) fn with(mut self, keyword: &str, value: impl Into<String>) -> Self {
        self.0.push((keyword.to_owned(), value.into()));
        self
    }
}

/// The value, and what follows its closing quote.
fn quoted_value(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next().ok_or("a quote that does not end")? {
            '\'' => return Ok((value, chars.as_str())),
            '\\' => value.extend(chars.next()),
            other => value.push(other),
        }
    }
}

/// The value up to a blank, and what follows.
fn plain_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        let rest = chars.as_str();
        match chars.next() {
            None => return (value, ""),
            Some(blank) if blank.is_ascii_whitespace() => return (value, rest),
            Some('\\') => value.extend(chars.next()),
            Some(other) => value.push(other),
        }
    }
}

/// Plain where that is safe, else between quotes.
impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:".contains(c);
        for (index, (keyword, value)) in self.0.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            if !value.is_empty() && value.chars().all(plain) {
                write!(f, "{gap}{keyword}={value}")?;
            } else {
                let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
                write!(f, "{gap}{keyword}='{escaped}'")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Conninfo {
        /// The value of a keyword. libpq takes the last one.
        pub(crate) fn get(&self, keyword: &str) -> Option<&str> {
            let mut pairs = self.0.iter().rev();
            let (_, value) = pairs.find(|(name, _)| name == keyword)?;
            Some(value)
        }
    }

    #[test]
    fn strings_are_read_as_libpq_reads_them() {
        let parsed =
            Conninfo::parse(" host = /run/x  port=5442 user='it\\'s \\\\' a=b\\ c d=''").unwrap();
        let expected = [
            ("host", "/run/x"),
            ("port", "5442"),
            ("user", "it's \\"),
            ("a", "b c"),
            ("d", ""),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(parsed.0, expected);
        for wrong in ["host", "a='b", "=b"] {
            assert!(Conninfo::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(values in prop::collection::vec("[^\0]{0,20}", 0..4)) {
            let mut conninfo = Conninfo::default();
            for value in &values {
                conninfo = conninfo.with("password", value.clone());
            }
            prop_assert_eq!(Conninfo::parse(&conninfo.to_string()), Ok(conninfo));
        }
    }
}
