//! Numbers with their units, for people.

/// A number of bytes: `68.2 GB`.
pub fn bytes(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Seconds: `8 s`, `3 min 20 s`, `5 h 10 min`, `2 d 3 h`.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if minutes == 0 => format!("{seconds} s"),
        () if hours == 0 => format!("{minutes} min {} s", seconds % 60),
        () if days == 0 => format!("{hours} h {} min", minutes % 60),
        () => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!((bytes(999).as_str(), bytes(68_200_000_000).as_str()), ("999 B", "68.2 GB"));
        let cases =
            [(8.2, "8 s"), (200.0, "3 min 20 s"), (18_610.0, "5 h 10 min"), (183_700.0, "2 d 3 h"), (0.0, "0 s")];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }
}
