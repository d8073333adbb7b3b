//! A template's source, from Jinja2's dialect with transformers' extensions into minijinja's.
//!
//! Three things differ: Jinja2 reads every line ending as `\n`; transformers has the tag `generation`; `%` formats texts.

use std::ops::Range;

/// Filter that `%` becomes: a remainder of numbers, a format of texts.
pub const PERCENT_FILTER: &str = "percent_operator";

/// Words that are no operands.
const KEYWORDS: [&str; 7] = ["and", "or", "not", "in", "is", "if", "else"];

/// The same template for minijinja. Source that is no Jinja stays as it is: minijinja says where the mistake lies.
pub fn translate(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut translated = String::with_capacity(source.len() + 64);
    let mut rest = source.as_str();
    while let Some((start, closing)) = next_opening(rest) {
        let end = if closing == "#}" {
            rest[start..].find(closing).map(|at| start + at + closing.len())
        } else if let Some(end) = end_of_raw(&rest[start..]) {
            Some(start + end)
        } else if let Some(tokens) = tokenize(&rest[start + 2..], closing) {
            translated.push_str(&rest[..start + 2]);
            let body = &rest[start + 2..];
            let end = tokens.last().map_or(0, |token| token.range.end);
            translated.push_str(&rewrite(&body[..end], &tokens, closing == "%}"));
            rest = &body[end..];
            let closing = rest.find(closing).map_or(rest.len(), |at| at + closing.len());
            translated.push_str(&rest[..closing]);
            rest = &rest[closing..];
            continue;
        } else {
            None
        };
        let end = end.unwrap_or(rest.len());
        translated.push_str(&rest[..end]);
        rest = &rest[end..];
    }
    translated.push_str(rest);
    translated
}

/// Where the next tag begins, and what closes it.
fn next_opening(text: &str) -> Option<(usize, &'static str)> {
    [("{{", "}}"), ("{%", "%}"), ("{#", "#}")]
        .into_iter()
        .filter_map(|(opening, closing)| Some((text.find(opening)?, closing)))
        .min()
}

/// End of a `raw` block that begins at the start of `text`; `None` if none does.
fn end_of_raw(text: &str) -> Option<usize> {
    let opening = tag_end(text, "raw")?;
    let mut from = opening;
    while let Some(at) = text[from..].find("{%") {
        if let Some(end) = tag_end(&text[from + at..], "endraw") {
            return Some(from + at + end);
        }
        from += at + 2;
    }
    Some(text.len())
}

/// Length of `{% name %}` at the start of `text`.
fn tag_end(text: &str, name: &str) -> Option<usize> {
    let signs = ['-', '+'];
    let rest = text.strip_prefix("{%")?;
    let rest = rest.strip_prefix(signs).unwrap_or(rest).trim_start().strip_prefix(name)?.trim_start();
    let rest = rest.strip_prefix(signs).unwrap_or(rest).strip_prefix("%}")?;
    Some(text.len() - rest.len())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Name,
    Number,
    Text,
    Operator,
}

struct Token<'a> {
    kind: Kind,
    text: &'a str,
    range: Range<usize>,
}

impl Token<'_> {
    fn is(&self, operator: &str) -> bool {
        self.kind == Kind::Operator && self.text == operator
    }

    fn opens(&self) -> bool {
        ["(", "[", "{"].iter().any(|bracket| self.is(bracket))
    }

    fn closes(&self) -> bool {
        [")", "]", "}"].iter().any(|bracket| self.is(bracket))
    }

    fn is_name(&self) -> bool {
        self.kind == Kind::Name && !KEYWORDS.contains(&self.text)
    }
}

/// Tokens up to `closing`; `None` if it is missing.
fn tokenize<'a>(body: &'a str, closing: &str) -> Option<Vec<Token<'a>>> {
    let mut tokens: Vec<Token<'a>> = Vec::new();
    let (mut at, mut depth) = (0usize, 0usize);
    loop {
        let rest = &body[at..];
        let first = rest.chars().next()?;
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let unsigned = rest.strip_prefix(['-', '+']).unwrap_or(rest);
        if depth == 0 && (rest.starts_with(closing) || unsigned.starts_with(closing)) {
            return Some(tokens);
        }
        let (kind, length) = match first {
            '\'' | '"' => (Kind::Text, text_length(rest, first)?),
            _ if first.is_alphabetic() || first == '_' => (Kind::Name, word_length(rest)),
            _ if first.is_ascii_digit() => (Kind::Number, word_length(rest)),
            _ => (Kind::Operator, operator_length(rest)),
        };
        let token = Token { kind, text: &rest[..length], range: at..at + length };
        depth = if token.opens() { depth + 1 } else { depth.saturating_sub(usize::from(token.closes())) };
        tokens.push(token);
        at += length;
    }
}

fn text_length(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

fn operator_length(text: &str) -> usize {
    let long = ["**", "//", "==", "!=", ">=", "<="].iter().any(|operator| text.starts_with(operator));
    if long { 2 } else { text.chars().next().map_or(0, char::len_utf8) }
}

/// The body of a tag with `generation` and `%` replaced.
fn rewrite(body: &str, tokens: &[Token<'_>], is_block: bool) -> String {
    let signs = tokens.iter().take_while(|token| token.is("-") || token.is("+")).count();
    if let [tag] = &tokens[signs..] {
        // As transformers' tag, `with` has a scope of its own and renders its body.
        let with = match tag.text {
            "generation" if is_block => Some("with"),
            "endgeneration" if is_block => Some("endwith"),
            _ => None,
        };
        if let Some(with) = with {
            return format!("{}{with}", &body[..tag.range.start]);
        }
    }
    let mut rewritten = String::new();
    let mut from = 0;
    for (range, replacement) in percent_edits(tokens) {
        rewritten.push_str(&body[from..range.start]);
        rewritten.push_str(&replacement);
        from = range.end;
    }
    rewritten.push_str(&body[from..]);
    rewritten
}

/// `a % b` becomes `a|percent_operator(b)`, where `a` is no product: a filter binds as tightly as `%` does there. A product
/// is a number, and minijinja's own `%` is for numbers.
fn percent_edits(tokens: &[Token<'_>]) -> Vec<(Range<usize>, String)> {
    let mut edits = Vec::new();
    // Per bracket: whether what stands before the next operator is a product.
    let mut products = vec![false];
    for (index, token) in tokens.iter().enumerate() {
        if token.opens() {
            products.push(false);
        } else if token.closes() {
            products.pop();
        }
        let Some(product) = products.last_mut() else { break };
        let is_keyword = token.kind == Kind::Name && KEYWORDS.contains(&token.text);
        match token.text {
            "%" if token.kind == Kind::Operator => match operand_end(tokens, index + 1) {
                Some(end) if !*product && !tokens.get(end).is_some_and(|next| next.is("**")) => {
                    edits.push((token.range.clone(), format!("|{PERCENT_FILTER}(")));
                    let after = tokens[end - 1].range.end;
                    edits.push((after..after, ")".to_string()));
                }
                _ => *product = true,
            },
            "*" | "/" | "//" | "**" if token.kind == Kind::Operator => *product = true,
            "." | "|" => {}
            _ if is_keyword || token.kind == Kind::Operator && !token.opens() && !token.closes() => *product = false,
            _ => {}
        }
    }
    edits.sort_by_key(|(range, _)| (range.start, range.end));
    edits
}

/// Index behind an operand with its attributes, calls and filters.
fn operand_end(tokens: &[Token<'_>], from: usize) -> Option<usize> {
    let mut at = from;
    while tokens.get(at).is_some_and(|token| token.is("-") || token.is("+")) {
        at += 1;
    }
    let first = tokens.get(at)?;
    at = match first.kind {
        Kind::Text => at + tokens[at..].iter().take_while(|token| token.kind == Kind::Text).count(),
        Kind::Number => at + 1,
        Kind::Name if first.is_name() => at + 1,
        Kind::Operator if first.opens() => group_end(tokens, at)?,
        _ => return None,
    };
    loop {
        at = match tokens.get(at) {
            Some(token) if token.is(".") || token.is("|") => at + 2,
            Some(token) if token.is("(") || token.is("[") => group_end(tokens, at)?,
            _ => return (at <= tokens.len()).then_some(at),
        };
    }
}

/// Index behind the bracket that closes the one at `from`.
fn group_end(tokens: &[Token<'_>], from: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(from) {
        depth += usize::from(token.opens());
        depth = depth.checked_sub(usize::from(token.closes()))?;
        if depth == 0 {
            return Some(index + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_minijinja_has_not_is_translated_and_everything_else_stays() {
        for (source, expected) in [
            ("a\r\nb\rc\n", "a\nb\nc\n"),
            ("{% generation %}x{%- endgeneration -%}", "{% with %}x{%- endwith -%}"),
            ("{{ generation }}{% set generation = 1 %}", "{{ generation }}{% set generation = 1 %}"),
            ("{{ '%s' % x }}", "{{ '%s' |percent_operator( x) }}"),
            ("{{ '%s%%' % m['a'].b(1)|upper + 'z' }}", "{{ '%s%%' |percent_operator( m['a'].b(1)|upper) + 'z' }}"),
            ("{% if loop.index0 % 2 == 0 %}", "{% if loop.index0 |percent_operator( 2) == 0 %}"),
            ("{{ a % b % c }}", "{{ a |percent_operator( b) |percent_operator( c) }}"),
            ("{{ a % (b % c) }}", "{{ a |percent_operator( (b |percent_operator( c))) }}"),
            ("{{ 2 * a % b }}{{ a % b ** 2 }}", "{{ 2 * a % b }}{{ a % b ** 2 }}"),
            ("{{ {'a': {'b': x % 2}} }}", "{{ {'a': {'b': x |percent_operator( 2)}} }}"),
            (
                "{# a % b #}100 % sure{% raw %}{{ a % b }}{% endraw %}",
                "{# a % b #}100 % sure{% raw %}{{ a % b }}{% endraw %}",
            ),
            ("{{ 'a % b }}' }}{{ \"\\\" % \" }}", "{{ 'a % b }}' }}{{ \"\\\" % \" }}"),
            ("{{ unfinished % 2", "{{ unfinished % 2"),
            ("{{- a % 2 -}}", "{{- a |percent_operator( 2) -}}"),
        ] {
            assert_eq!(translate(source), expected, "{source}");
        }
    }
}
