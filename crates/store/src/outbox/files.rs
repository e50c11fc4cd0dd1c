//! The names of the outbox's files.

/// The name of a segment.
pub(super) fn segment_name(number: u64) -> String {
    format!("outbox-{number:016x}.log")
}

/// The number of the segment with this name; other files are not the outbox's affair.
pub(super) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("outbox-")?.strip_suffix(".log")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (number > 0 && segment_name(number) == name).then_some(number)
}

/// The name of the `attempt`th file (from 1) for the damaged bytes of a segment.
pub(super) fn damage_name(segment: u64, attempt: usize) -> String {
    match attempt {
        1 => format!("outbox-{segment:016x}.damaged"),
        _ => format!("outbox-{segment:016x}.damaged-{attempt}"),
    }
}

/// Whether a file holds damaged bytes.
pub(super) fn is_damage_name(name: &str) -> bool {
    name.starts_with("outbox-") && name.contains(".damaged")
}

/// A prefix for files that are set aside together, which no file has yet.
pub(super) fn set_aside_prefix(names: &[String]) -> String {
    let mut attempt = 1;
    loop {
        let prefix = format!("set-aside-{attempt}-");
        if !names.iter().any(|name| name.starts_with(&prefix)) {
            return prefix;
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        assert_eq!(segment_name(255), "outbox-00000000000000ff.log");
        assert_eq!(segment_number(&segment_name(255)), Some(255));
        for other in [
            "outbox-0000000000000000.log",
            "outbox-00000000000000FF.log",
            "outbox-+0000000000000ff.log",
            "outbox-ff.log",
            "outbox-00000000000000ff.damaged",
            "set-aside-1-outbox-00000000000000ff.log",
        ] {
            assert_eq!(segment_number(other), None, "{other}");
        }
    }
}
