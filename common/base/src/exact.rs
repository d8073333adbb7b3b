//! Floats in JSON that come back bit for bit: `#[serde(with = "exact")]`.
//!
//! serde_json's own parser may be off by the last bit, and writes values that are not finite as `null`, which it cannot read
//! back. Here numbers are parsed by the standard library, and the others are the texts that Python's `float()` takes.

use serde::{Deserialize, Deserializer, Serializer, de};
use serde_json::value::RawValue;

const NOT_FINITE: [(&str, f64); 3] = [("NaN", f64::NAN), ("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY)];

/// A number, or `"NaN"`, `"Infinity"`, `"-Infinity"`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    match NOT_FINITE.iter().find(|(_, other)| other == value || other.is_nan() && value.is_nan()) {
        Some((name, _)) => serializer.serialize_str(name),
        None => serializer.serialize_f64(*value),
    }
}

/// Reads what [`serialize`] writes; from serde_json alone, and not within an untagged or flattened value.
///
/// # Errors
/// Anything else.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    parse(&Box::<RawValue>::deserialize(deserializer)?)
}

fn parse<E: de::Error>(value: &RawValue) -> Result<f64, E> {
    let text = value.get();
    let name = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let found = match name {
        Some(name) => NOT_FINITE.iter().find(|(other, _)| *other == name).map(|(_, value)| *value),
        None => text.parse().ok(),
    };
    found.ok_or_else(|| E::custom(format!("invalid value {text}, expected a number, \"NaN\" or \"Infinity\"")))
}

/// The same for a float that may be absent (`null`).
pub mod option {
    use super::{Deserialize, Deserializer, RawValue, Serializer, parse};

    /// As [`super::serialize`].
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// As [`super::deserialize`].
    ///
    /// # Errors
    /// As there.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        Option::<Box<RawValue>>::deserialize(deserializer)?.map(|value| parse(&value)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Values {
        #[serde(with = "super")]
        one: f64,
        #[serde(with = "super::option")]
        other: Option<f64>,
    }

    #[test]
    fn every_float_comes_back_bit_for_bit() {
        let fixed =
            [0.0, -0.0, f64::MIN_POSITIVE, f64::MAX, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0 / 3.0, 5e-324];
        let mut random = StdRng::seed_from_u64(7);
        let random = (0..20_000).map(|_| f64::from_bits(random.random()));
        for value in fixed.into_iter().chain(random) {
            for other in [None, Some(value)] {
                let text = serde_json::to_vec_pretty(&Values { one: value, other }).expect("JSON");
                let read: Values = serde_json::from_slice(&text).expect("readable");
                let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                let both = same(read.one, value) && read.other.is_some() == other.is_some();
                assert!(
                    both && read.other.is_none_or(|read| same(read, value)),
                    "{value:e} came back as {:e}",
                    read.one
                );
            }
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in
            [r#"{"one": "nan", "other": null}"#, r#"{"one": null, "other": null}"#, r#"{"one": [1], "other": 1}"#]
        {
            assert!(serde_json::from_str::<Values>(text).is_err(), "{text}");
        }
    }
}
