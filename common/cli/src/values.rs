//! Values of options that more than one program takes: what clap's `value_parser` calls.

/// A whole number from 1.
///
/// # Errors
/// Anything else.
pub fn at_least_1(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "expected a whole number, at least 1".to_string())
}

/// A share: 0 to 1.
///
/// # Errors
/// Anything else.
pub fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "expected a share between 0 and 1".to_string())
}

/// A share that leaves something: 0 to below 1.
///
/// # Errors
/// Anything else.
pub fn share_below_1(text: &str) -> Result<f64, String> {
    share(text).ok().filter(|&number| number < 1.0).ok_or_else(|| "expected a share from 0 to below 1".to_string())
}

/// A boolean as the Hugging Face `Trainer`'s command line takes it: `True`, `false`, `1`, `no`, …
///
/// # Errors
/// Anything else.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "y" | "t" => Ok(true),
        "false" | "0" | "no" | "n" | "f" => Ok(false),
        _ => Err("expected true or false".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_refused() {
        assert_eq!((at_least_1("3"), share("1"), share_below_1("0.5")), (Ok(3), Ok(1.0), Ok(0.5)));
        assert!(["0", "-1", "1.5", "x"].iter().all(|text| at_least_1(text).is_err()));
        assert!(["-0.1", "1.1", "nan", "inf", "x"].iter().all(|text| share(text).is_err()));
        assert!(share_below_1("1").is_err());
        assert_eq!((boolean("True"), boolean("0")), (Ok(true), Ok(false)));
        assert!(boolean("maybe").is_err());
    }
}
