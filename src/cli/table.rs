//! Columns of text, two spaces apart, as wide as their widest cell.

/// Lays out a header and rows. The last column is not padded, so lines have no blanks at
/// their ends.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|&h| h.to_owned()).collect();
    let all: Vec<&[String]> =
        std::iter::once(header.as_slice()).chain(rows.iter().map(Vec::as_slice)).collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|i| all.iter().filter_map(|r| r.get(i)).map(|c| width(c)).max().unwrap_or(0))
        .collect();
    all.iter().map(|row| line(row, &widths)).collect()
}

fn line(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).map(|(cell, w)| pad(cell, *w));
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
}

/// Columns a text takes, one per character.
pub fn width(text: &str) -> usize {
    text.chars().count()
}

/// Fills up with blanks on the right.
pub fn pad(text: &str, to: usize) -> String {
    let missing = to.saturating_sub(width(text));
    format!("{text}{}", " ".repeat(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".into(), "MIGRATING▸b".into(), "x".into()],
            vec!["long".into(), "-".into(), String::new()],
        ];
        assert_eq!(
            table(&["ID", "STATE", "M"], &rows),
            "ID    STATE        M\n\
             a     MIGRATING▸b  x\n\
             long  -\n"
        );
    }
}
