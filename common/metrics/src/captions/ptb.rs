//! Caption tokenization as pycocoevalcap's: Stanford's Penn Treebank tokenizer (`-preserveLines -lowerCase`), then
//! punctuation removed.
//!
//! Written from the tokenizer's observable behaviour: at each position the rule with the longest match wins (what a rule
//! looks ahead at counts as matched), the earlier one when equal.

use regex::Regex;
use std::sync::LazyLock;

/// Tokens that pycocoevalcap drops. The brackets are there in capitals, while tokens come in lower case: they stay.
const PUNCTUATION: [&str; 18] =
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";", ""];

/// What a matched text becomes.
#[derive(Clone, Copy)]
enum Become {
    /// Itself.
    Same,
    /// Itself, with a typographic apostrophe made plain.
    PlainApostrophe,
    /// This text.
    Text(&'static str),
    /// Itself with brackets spelled out.
    Brackets,
    /// Nothing: white space and characters that the tokenizer does not know.
    Nothing,
}

use Become::{Brackets, Nothing, PlainApostrophe, Same, Text};

/// (pattern, what its group `t`, or the whole match, becomes). Earlier rules win ties.
const RULES: &[(&str, Become)] = &[
    (r"[\s\u{00A0}]+", Nothing),
    // Mark-up, addresses, names of users and topics.
    (r"</?[A-Za-z][A-Za-z0-9_ -]*/?>", Same),
    (r#"(?i:ftp|svn|https?|mailto)://[^\s"<>|()]+[^\s"<>|.!?(){},-]"#, Same),
    (
        r#"(?:www\.(?:[^\s"<>|.!?(){},]+\.)+[A-Za-z]{2,4}|(?:[^\s"`'<>|.!?(){},\-_$]+\.)+(?:com|net|org|edu))(?:/[^\s"<>|()]+[^\s"<>|.!?(){},-])?"#,
        Same,
    ),
    (r#"[A-Za-z0-9][^\s"<>|(){}]*@(?:[^\s"<>|(){}.]+\.)+[^\s"<>|(){}.]+"#, Same),
    (r"[@#][A-Za-z_][A-Za-z_0-9]*", Same),
    // A word before a negation or an auxiliary, and these themselves.
    (r"(?<t>\p{L}[\p{L}\p{M}]*)(?i:n['’]t)", Same),
    (
        r"(?<t>[\p{L}\p{N}][\p{L}\p{M}\p{N}]*(?:[-_][\p{L}\p{M}\p{N}]+)*(?:[./][\p{L}\p{M}\p{N}]+)*)(?i:['’](?:s|m|d|ll|re|ve))",
        Same,
    ),
    (r"(?<t>(?i:n['’]t))(?:[^\p{L}]|$)", PlainApostrophe),
    (r"(?<t>(?i:['’](?:s|m|d|ll|re|ve)))(?:[^\p{L}]|$)", PlainApostrophe),
    (r"(?<t>[yY]['’])\p{L}", Same),
    (r"(?<t>(?i:can))(?i:not)", Same),
    (r"(?<t>(?i:gon|got|lem|gim|wan))(?i:na|ta|me)(?:[^\p{L}]|$)", Same),
    (r"(?<t>['’](?i:t))(?i:is|was)(?:[^\p{L}]|$)", PlainApostrophe),
    (r"(?<t>(?i:more))['’](?i:n)", Same),
    // Words with an apostrophe of their own.
    (
        r"(?:['’](?:[nN]['’]?|(?i:em|till?|cause)|[2-9]0[sS])|(?i:c['’]mon|somethin['’]|ol['’]|cont['’]d|nor['’]easter))",
        Same,
    ),
    (r"(?<t>['’][0-9]{2})(?:[\s.,]|$)", Same),
    (r"[dDoOlL]['’][\p{L}\p{N}]+(?:-(?:[dDoOlL]['’])?[\p{L}\p{N}]+)*", Same),
    (r"\p{L}+[aeiouyAEIOUY]['’][aeiouA-Z]\p{L}*", Same),
    // Abbreviations keep their full stop.
    (r"(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri)\.", Same),
    (
        r"(?:(?i:ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo)|A(?i:z|rk)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash))\.",
        Same,
    ),
    (
        r"(?i:mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|pres|lieut|hon|brig|comdr|cmdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp|mlle|mme|msgr|sfc)\.",
        Same,
    ),
    (
        r"(?:(?i:inc|cos?|corp|ltd|plc|rt|bancorp|dept|bhd|assn|univ|intl|sys|ph|jr|sr|bros|blvd|rd|esq)|[Pp]t[ye]s?)\.",
        Same,
    ),
    (r"(?i:vs|etc|al|seq|invt|elec|cf|ext|tel|bldg|sq|est|natl|wm|jos|mfg|treas|(?:ed|ph)\.d)\.", Same),
    (r"[A-Za-z](?:\.[A-Za-z])*\.", Same),
    // … unless a single letter is followed by a word that begins sentences.
    (
        r"(?<t>[A-Za-z])\.\s+(?:A|An|The|We|It|They|He|She|You|This|That|These|There|But|In|At|If|When|After|While|As|So|One|Some|Her|Their|Our|However|Then|Here|What|Many|Since|Other|Such|Now|About|According|Additionally|Last|Once|Yet)\s",
        Same,
    ),
    (r"(?<t>(?i:nos?|prop|figs?|pp|op|ca)\.)\s*[0-9]", Same),
    (r"(?<t>[\p{L}\p{M}]+\.)[,;:]", Same),
    // Numbers, dates, fractions.
    (r"[+-]?(?:[0-9]*(?:[.:,][0-9]+)+|[0-9]+)", Same),
    (r"[0-9]*(?:[.:,][0-9]+)+(?:-[\p{L}\p{N}]+)+", Same),
    (r"\([0-9]{2,3}\)[- ]?[0-9]{3,4}[- ]?[0-9]{4}", Brackets),
    (r"(?:[0-9]{1,4}[- ])?[0-9]{1,4}/[0-9]{1,4}", Same),
    (r"[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}", Same),
    ("½", Text("1/2")),
    ("¼", Text("1/4")),
    ("¾", Text("3/4")),
    // Words: with inner stops, hyphens, slashes.
    (r"\p{L}[\p{L}\p{M}\p{N}]*(?:[.!?]\p{L}[\p{L}\p{M}\p{N}]*)*", Same),
    (r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*(?:[-_][\p{L}\p{M}\p{N}]+)*", Same),
    (r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", Same),
    (r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+", Same),
    (r"C\+\+", Same),
    // Money and signs.
    (r"[A-Z]*\$", Same),
    ("£", Text("#")),
    ("€", Text("$")),
    ("¢", Text("cents")),
    ("&amp;", Text("&")),
    ("&lt;", Text("<")),
    ("&gt;", Text(">")),
    ("&quot;", Text("\"")),
    (r"[<>]?[:;=][-o*']?[()\\@\[\]]", Brackets),
    (r"(?<t>[<>]?[:;=][-o*']?[DPdpO])(?:[^\p{L}]|$)", Same),
    (r"\^_\^", Same),
    // Quotation marks, dashes, brackets, stops.
    (r#"(?<t>")[A-Za-z0-9$]"#, Text("``")),
    (r#""|''|[”»]"#, Text("''")),
    (r"``|[“«]", Text("``")),
    (r"(?<t>['’])[A-Za-z]", Text("`")),
    (r"[‘‹]|`", Text("`")),
    (r"['’›]", Text("'")),
    (r"\.\.\.+|\. \. \.|…", Text("...")),
    (r"--+|[–—]", Text("--")),
    (r"\(", Text("-lrb-")),
    (r"\)", Text("-rrb-")),
    (r"\[", Text("-lsb-")),
    (r"\]", Text("-rsb-")),
    (r"\{", Text("-lcb-")),
    (r"\}", Text("-rcb-")),
    (r"[?!]+|\*+|__+|[-.,;:/\\&@#%<>=+~^|_°²³©®™•·×÷„§¶±¡¿№]", Same),
    (r"(?s:.)", Nothing),
];

static COMPILED: LazyLock<Vec<(Regex, Become)>> = LazyLock::new(|| {
    let compile = |&(pattern, becomes): &(&str, Become)| {
        // The patterns are constants of this file; the unit tests compile every one.
        (Regex::new(&format!("^(?:{pattern})")).expect("a constant pattern"), becomes)
    };
    RULES.iter().map(compile).collect()
});

/// The words of a caption, lower case, without punctuation.
///
/// # Source
/// pycocoevalcap 1.2 `tokenizer/ptbtokenizer.py` over Stanford CoreNLP 3.4.1's `PTBTokenizer`.
pub fn tokenize(caption: &str) -> Vec<String> {
    let line = caption.replace('\n', " ");
    let mut rest = line.trim_end();
    let mut words = Vec::new();
    while !rest.is_empty() {
        let (token, becomes) = longest(rest);
        push(&mut words, token, becomes);
        rest = &rest[token.len()..];
    }
    words
}

fn longest(text: &str) -> (&str, Become) {
    let mut best = (0, "", Nothing);
    for (rule, becomes) in COMPILED.iter() {
        let Some(found) = rule.captures(text) else { continue };
        let whole = found.get(0).map_or("", |matched| matched.as_str());
        if whole.len() > best.0 {
            let token = found.name("t").map_or(whole, |token| token.as_str());
            best = (whole.len(), token, *becomes);
        }
    }
    (best.1, best.2)
}

fn push(words: &mut Vec<String>, token: &str, becomes: Become) {
    let text = match becomes {
        Nothing => return,
        Same => token.to_lowercase(),
        PlainApostrophe => token.to_lowercase().replace('’', "'"),
        Text(text) => text.to_string(),
        Brackets => token.to_lowercase().replace('(', "-lrb-").replace(')', "-rrb-"),
    };
    if !PUNCTUATION.contains(&text.as_str()) {
        // Spaces in a token ("1 1/2") are no-break spaces in Stanford's.
        words.push(text.replace(' ', "\u{a0}"));
    }
}

#[cfg(test)]
mod tests {
    use super::tokenize;

    // Expected: pycocoevalcap 1.2's PTBTokenizer.
    #[test]
    fn captions_become_the_words_of_the_original() {
        for (caption, words) in [
            (
                "A man's dog isn't here, it's over there; we'll see.",
                "a man 's dog is n't here it 's over there we 'll see",
            ),
            ("I cannot see. gonna 'tis lemme", "i can not see gon na 't is lem me"),
            (
                "A black-and-white photo (in New York) of \"two\" people's hats",
                "a black-and-white photo -lrb- in new york -rrb- of two people 's hats",
            ),
            ("and/or 1/2 7:30pm 3,000 people $5 50% #1 & home", "and/or 1/2 7:30 pm 3,000 people $ 5 50 % # 1 & home"),
            ("Mr. Smith at St. John's in the U.S. No. 5", "mr. smith at st. john 's in the u.s. no. 5"),
            ("Wait... what?! Really!! – it’s “quoted”", "wait what ?! really !! it 's quoted"),
            ("rock 'n' roll o'clock '90s 1990's 3-D 4x4", "rock 'n' roll o'clock '90s 1990 's 3-d 4x4"),
            ("café naïve 日本 😀 ok\n", "café naïve 日本 ok"),
            ("", ""),
            (" . ", ""),
        ] {
            assert_eq!(tokenize(caption).join(" "), words, "{caption:?}");
        }
    }
}
