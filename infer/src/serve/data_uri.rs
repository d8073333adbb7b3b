//! `data:` URIs as browsers and clients write them.

use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeError, Engine as _};

/// Standard alphabet; padding and the unused bits of the last character as they come.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// `data:image/png;name=a.png;base64,…` → bytes. The media type and its parameters are not believed: the content says what
/// it is. Base64 may have line breaks and spaces, either alphabet, and percent signs as in any URI; without `;base64` the
/// data are percent-encoded bytes.
///
/// # Errors
/// The fault and its place.
/// # Source
/// The WHATWG's "data: URL processor" and "forgiving-base64 decode".
/// # Differs
/// The URL-safe alphabet is read, too: Python's and JavaScript's `base64url` write it.
pub fn decode(uri: &str) -> Result<Vec<u8>, String> {
    let (head, data) = uri.split_once(',').ok_or("data URI: found no comma, expected data:image/…;base64,…")?;
    let data = percent_decoded(data.as_bytes());
    let bytes = if is_base64(head) { base64(data)? } else { data };
    if bytes.is_empty() {
        return Err("data URI: found no data after the comma".to_string());
    }
    Ok(bytes)
}

/// Whether the last parameter is `base64`.
fn is_base64(head: &str) -> bool {
    let last = head.trim_end().rsplit_once(';').map(|(_, last)| last.trim_start());
    last.is_some_and(|last| last.eq_ignore_ascii_case("base64"))
}

fn base64(mut data: Vec<u8>) -> Result<Vec<u8>, String> {
    data.retain(|byte| !byte.is_ascii_whitespace());
    for byte in &mut data {
        match byte {
            b'-' => *byte = b'+',
            b'_' => *byte = b'/',
            _ => {}
        }
    }
    BASE64.decode(&data).map_err(|error| {
        let found = match error {
            DecodeError::InvalidByte(at, byte) => format!("the byte {:?} at {at}", char::from(byte)),
            DecodeError::InvalidLength(_) | DecodeError::InvalidPadding | DecodeError::InvalidLastSymbol(..) => {
                format!("{} characters, cut off or too many", data.len())
            }
        };
        format!("data URI: found {found}, expected base64")
    })
}

/// `%2B` → `+`; a percent sign without two hexadecimal digits stays.
fn percent_decoded(data: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|&byte| char::from(byte).to_digit(16));
    let mut decoded = Vec::with_capacity(data.len());
    let mut rest = data;
    while let Some((&byte, after)) = rest.split_first() {
        match (byte, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                decoded.push(byte);
                rest = after;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_the_same_bytes() {
        // The bytes are those whose base64 has both characters that the alphabets differ in.
        let expected = [0xfb, 0xef, 0xff, 0xfe];
        for uri in [
            "data:image/png;base64,++///g==",
            "data:image/png;base64,++///g",
            "DATA:;BASE64,++///g=",
            "data:image/png;base64,--___g",
            "data:image/png;base64,-+_//g==",
            "data:image/png;base64,++//\r\n/g==\n",
            "data:image/png;base64, ++ //\t/g= = ",
            "data:image/png;base64,%2B%2b%2F%2F%2Fg%3D%3D",
            "data:image/png;base64,++///g%0A",
            "data:image/png;base64,++///h==",
            "data:image/png;name=a.png;base64,++///g==",
            "data:image/svg+xml;charset=utf-8;base64,++///g==",
            "data:image/png; base64 ,++///g==",
            "data:base64;base64,++///g==",
            "data:image/png,%FB%EF%ff%FE",
        ] {
            assert_eq!(decode(uri).as_deref(), Ok(&expected[..]), "{uri:?}");
        }
    }

    #[test]
    fn what_is_no_data_uri_says_why() {
        for (uri, word) in [
            ("data:image/png;base64", "no comma"),
            ("data:image/png;base64,", "no data"),
            ("data:image/png;base64,\n ", "no data"),
            ("data:image/png;base64,a", "cut off"),
            ("data:image/png;base64,aGk=aGk=", "'=' at 3"),
            ("data:image/png;base64,$$$$", "'$' at 0"),
            ("data:image/png;base64,aGé=", "at 2"),
        ] {
            let error = decode(uri).expect_err(uri);
            assert!(error.contains(word), "{uri:?}: {error}");
        }
        assert_eq!(decode("data:,100%").as_deref(), Ok(&b"100%"[..]));
    }
}
