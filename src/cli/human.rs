//! Figures and names as people read them.

/// Size in powers of 1024 as ps(1) and top(1) show it: `0`, `6.1M`, `310M`, `11.2G`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["", "K", "M", "G", "T"] {
        if value < 1000.0 || unit == "T" {
            return match unit {
                "" => bytes.to_string(),
                _ if value < 99.95 => format!("{value:.1}{unit}"),
                _ => format!("{value:.0}{unit}"),
            };
        }
        value /= 1024.0;
    }
    unreachable!("the last unit returns")
}

/// Amount of data moved, powers of 1000: `812 kB`, `2.13 GB`.
pub fn amount(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 || unit == "GB" {
            return match unit {
                "B" => format!("{bytes} B"),
                _ if value < 9.995 => format!("{value:.2} {unit}"),
                _ if value < 99.95 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1000.0;
    }
    unreachable!("the last unit returns")
}

/// Age in its two largest units: `17s`, `41m`, `6h12m`, `12d`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Age of a moment given in Unix milliseconds.
pub fn age_since(unix_ms: u64) -> String {
    age(now_ms().saturating_sub(unix_ms) / 1000)
}

/// Unix milliseconds now.
pub fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds with a sensible number of digits: `8.3 ms`, `412 ms`, `12.3 s`.
pub fn duration(ms: f64) -> String {
    match ms {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// `1 process`, `2 processes`.
pub fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Text from a program or a peer, made safe for a terminal: control characters are
/// written as escapes.
pub fn clean(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escape = c.is_control().then(|| c.escape_default());
            let plain = escape.is_none().then_some(c);
            escape.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// At most `width` characters, the last an ellipsis when something was cut off.
pub fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept + "…"
}

/// Breaks a line at blanks so that no part is wider than `width`, longer words excepted.
pub fn wrap(line: &str, width: usize) -> String {
    let mut text = String::new();
    let mut column = 0;
    for word in line.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            text.push('\n');
            column = 0;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text += word;
        column += length;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let all: Vec<_> =
            [0, 999, 1000, 6_396_313, 325_058_560, 12_025_908_429, u64::MAX].map(size).into();
        assert_eq!(all, ["0", "999", "1.0K", "6.1M", "310M", "11.2G", "16777216T"]);
        let all: Vec<_> = [0, 812_345, 2_130_000_000, 99_960_000].map(amount).into();
        assert_eq!(all, ["0 B", "812 kB", "2.13 GB", "100 MB"]);
    }

    #[test]
    fn times() {
        let all: Vec<_> = [17, 2460, 22_320, 1_036_800].map(age).into();
        assert_eq!(all, ["17s", "41m", "6h12m", "12d"]);
        let all: Vec<_> = [0.25, 8.31, 412.4, 12_300.0].map(duration).into();
        assert_eq!(all, ["0.2 ms", "8.3 ms", "412 ms", "12.3 s"]);
    }

    #[test]
    fn lines_break_at_blanks() {
        assert_eq!(wrap("one two three", 7), "one two\nthree");
        assert_eq!(wrap("incomprehensible", 7), "incomprehensible");
    }

    #[test]
    fn no_escape_sequence_reaches_the_terminal() {
        assert_eq!(clean("a\x1b[31mé\n"), "a\\u{1b}[31mé\\n");
        assert_eq!(shorten("abcdef", 4), "abc…");
    }
}
