//! Bytes as hexadecimal digits.

use std::fmt;

const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// Bytes that are written at a time: a fingerprint in one piece.
const AT_ONCE: usize = 32;

/// Shown as two digits a byte, in lower case.
#[derive(Clone, Copy, Debug)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for bytes in self.0.chunks(AT_ONCE) {
            let mut text = [0; 2 * AT_ONCE];
            for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
                pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
            }
            let digits = text.get(..bytes.len().saturating_mul(2));
            let digits = digits.and_then(|digits| str::from_utf8(digits).ok());
            f.write_str(digits.unwrap_or_default())?;
        }
        Ok(())
    }
}

/// The bytes that such digits stand for, in lower or upper case. None where there are others among them, a sign for
/// example, or their number is odd.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let value = |digit: u8| char::from(digit).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(value(*high)? << 4 | value(*low)?).ok();
    rest.is_empty()
        .then(|| pairs.iter().map(byte).collect())
        .flatten()
}

fn digit(value: u8) -> u8 {
    DIGITS.get(usize::from(value)).copied().unwrap_or(b'?')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_two_digits() {
        let bytes: Vec<u8> = (0..=255).collect();
        for bytes in [&bytes[..0], &bytes[..1], &bytes[..32], &bytes[..33], &bytes] {
            let expected: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(Hex(bytes).to_string(), expected);
            assert_eq!(from_hex(&expected).as_deref(), Some(bytes));
            assert_eq!(from_hex(&expected.to_uppercase()).as_deref(), Some(bytes));
        }
    }

    #[test]
    fn nothing_but_pairs_of_digits_is_read() {
        for text in ["0", "0g", "+f", "-1", " 0", "0\u{df}", "abc"] {
            assert_eq!(from_hex(text), None, "{text}");
        }
    }
}
