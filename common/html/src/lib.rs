//! What the programs' HTML pages are made of: text and data that cannot become markup, short numbers, histograms, pictures.

#![deny(missing_docs)]

pub mod chart;
pub mod picture;

/// A value with about four significant digits: `0.0002`, `1.234`, `12,345`.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".into();
    }
    if size < 1e-2 {
        return format!("{value:.2e}").replace(".00e", "e").replace("0e", "e");
    }
    if size >= 1000.0 {
        return thousands(value.round() as i64);
    }
    let digits = (3 - size.log10().floor() as i32).clamp(0, 4) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

fn thousands(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    format!("{}{}", if value < 0 { "−" } else { "" }, groups.join(","))
}

/// Text for HTML, attributes included.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// JSON for a `<script>` element, which ends where its text says so.
pub fn script_json(json: &str) -> String {
    json.replace('<', "\\u003c")
}

/// The element in a page's head that says which command made it.
pub fn generator(command: &str) -> String {
    format!("<meta name=\"generator\" content=\"{command}\">")
}

/// Whether a file's beginning is that of a page of this command.
pub fn is_page_of(head: &[u8], command: &str) -> bool {
    String::from_utf8_lossy(head).contains(&generator(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases =
            [(0.0002, "2e-4"), (1.23456, "1.235"), (12345.0, "12,345"), (0.5, "0.5"), (100.0, "100"), (0.0, "0")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn data_cannot_end_its_script() {
        assert_eq!(script_json(r#"["</script>"]"#), r#"["\u003c/script>"]"#);
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escaped("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
