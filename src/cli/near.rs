//! Words that look like a mistyped one.

use crate::codes::CODES;

/// The candidate nearest to a word, if any is near.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates.filter_map(|c| Some((score(word, c)?, c))).min().map(|(_, c)| c)
}

/// At most three codes that contain the word or differ from it in few letters, the
/// nearest first.
pub fn near(word: &str) -> Vec<&'static str> {
    let word = word.to_ascii_uppercase();
    let word = word.strip_prefix("VOS-").unwrap_or(&word);
    let mut scored: Vec<(usize, &str)> = CODES
        .iter()
        .filter_map(|c| Some((score(word, c.code.strip_prefix("VOS-")?)?, c.code)))
        .collect();
    scored.sort_unstable();
    scored.into_iter().take(3).map(|(_, code)| code).collect()
}

/// 0 for a part of the code, else the number of edits, when that is at most a third of
/// the word.
fn score(word: &str, code: &str) -> Option<usize> {
    if word.len() >= 2 && code.contains(word) {
        return Some(0);
    }
    let edits = edits(word, code);
    (edits <= word.len().div_ceil(3)).then_some(edits)
}

/// Levenshtein distance of two ASCII words.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance() {
        assert_eq!(edits("TIMEOT", "TIMEOUT"), 1);
        assert_eq!(edits("", "ABC"), 3);
        assert_eq!(edits("KITTEN", "SITTING"), 3);
    }

    #[test]
    fn a_part_is_near() {
        assert!(near("vos-map").contains(&"VOS-MAPPING"));
        assert!(near("").is_empty());
    }
}
