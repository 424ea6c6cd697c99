//! The picture of the demonstration: two hosts side by side, the program's screen in the
//! one where it runs, the move below. 80 columns, 24 rows.

use std::time::Duration;

use crate::cli::human::{duration, shorten};
use crate::cli::out::print;
use crate::cli::table::{pad, width};

/// Columns and rows needed.
pub const SIZE: (u16, u16) = (80, 24);
/// Columns inside a box.
const INNER: usize = 36;
/// Rows inside a box: as many as the program draws.
const ROWS: usize = 8;
/// Rows for the progress of a move: headline, phases, result.
const LOG: usize = 8;

/// What the picture shows.
#[derive(Debug, Default)]
pub struct View {
    pub elapsed: Duration,
    /// Where the program runs: 0 left, 1 right.
    pub side: usize,
    /// Pid of the program on the host it runs on, once a move has told.
    pub host_pid: Option<i32>,
    pub frame: Vec<String>,
    /// `move 2 of 4`.
    pub title: String,
    /// The progress display of the running or last move.
    pub log: Vec<String>,
    pub pauses_ms: Vec<f64>,
}

/// The picture's lines, at most 24, none wider than 80.
pub fn lines(view: &View) -> Vec<String> {
    let clock = format!("{:02}:{:02}", view.elapsed.as_secs() / 60, view.elapsed.as_secs() % 60);
    let mut lines =
        vec![format!(" {}{clock}", pad("vosrun demo: one running program, two hosts", 73))];
    let (left, right) = (host_box(view, 0, "left"), host_box(view, 1, "right"));
    lines.extend(left.iter().zip(&right).map(|(l, r)| format!(" {l}  {r}")));
    lines.push(String::new());
    lines.push(format!(" {}", view.title));
    lines.extend((0..LOG).map(|i| view.log.get(i).cloned().unwrap_or_default()));
    lines.push(if view.pauses_ms.is_empty() {
        String::new()
    } else {
        format!(" paused so far: {}", pauses(&view.pauses_ms))
    });
    lines.push(" ^C ends the demo and removes everything it has started".into());
    lines.into_iter().map(|line| shorten(&line, 79)).collect()
}

/// `12 ms / 13 ms`.
pub fn pauses(all: &[f64]) -> String {
    all.iter().map(|ms| duration(*ms)).collect::<Vec<_>>().join(" / ")
}

fn host_box(view: &View, side: usize, name: &str) -> Vec<String> {
    let here = view.side == side;
    let pid = view.host_pid.map_or_else(String::new, |pid| format!(", host pid {pid}"));
    let title = if here { format!(" {name}: runs here{pid} ") } else { format!(" {name} ") };
    let title = shorten(&title, INNER);
    let mut lines = vec![format!("┌{title}{}┐", "─".repeat(INNER - width(&title)))];
    for row in 0..ROWS {
        let text = if here { view.frame.get(row).map_or("", String::as_str) } else { "" };
        lines.push(format!("│{}│", pad(&shorten(&format!(" {text}"), INNER), INNER)));
    }
    lines.push(format!("└{}┘", "─".repeat(INNER)));
    lines
}

/// The terminal's other screen, so that what was there before comes back when dropped.
pub struct Screen;

impl Screen {
    /// Switches over and hides the cursor (console_codes(4), xterm's 1049).
    ///
    /// # Errors
    /// When the terminal cannot be written.
    pub fn open() -> anyhow::Result<Self> {
        print("\x1b[?1049h\x1b[?25l\x1b[2J").map(|()| Self)
    }

    /// Draws the picture.
    ///
    /// # Errors
    /// When the terminal cannot be written.
    pub fn draw(&self, view: &View) -> anyhow::Result<()> {
        print(&format!("\x1b[H{}\x1b[K\x1b[J", lines(view).join("\x1b[K\r\n")))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no cursor.
        let _ = print("\x1b[?25h\x1b[?1049l");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_a_small_terminal() {
        let view = View {
            elapsed: Duration::from_secs(72),
            side: 1,
            host_pid: Some(4_194_303),
            frame: (0..20).map(|_| "x".repeat(100)).collect(),
            title: "move 2 of 4".into(),
            log: (0..20).map(|_| "y".repeat(200)).collect(),
            pauses_ms: vec![12.0; 8],
        };
        let lines = lines(&view);
        assert!(lines.len() < usize::from(SIZE.1), "{} rows", lines.len());
        assert!(lines.iter().all(|l| width(l) <= 79), "{lines:#?}");
    }

    #[test]
    fn the_program_is_in_the_box_of_its_host() {
        let mut view = View { frame: vec!["tick 7".into()], ..View::default() };
        let top = |view: &View| lines(view)[1..3].join("\n");
        let (left, right) = ("─".repeat(19), "─".repeat(29));
        assert_eq!(
            top(&view),
            format!(
                " ┌ left: runs here {left}┐  ┌ right {right}┐\n │ tick 7{0}{1}│  │ {0}{1}      │",
                " ".repeat(9),
                " ".repeat(20)
            )
        );
        view.side = 1;
        view.host_pid = Some(99);
        assert!(top(&view).contains("┌ right: runs here, host pid 99 "), "{}", top(&view));
        assert!(lines(&view)[2].ends_with("│ tick 7                             │"));
    }
}
