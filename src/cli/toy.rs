//! The small programs that `doctor` and `demo` move. They know nothing of vosrun: threads
//! that check a pattern in memory and hand a turn to each other, and a conversation over
//! standard input and output.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, BufRead, Read};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::termios::{
    tcgetattr, tcsetattr, LocalFlags, SetArg, SpecialCharacterIndices, Termios,
};

use super::out::print;
use super::table::pad;

/// Memory that the demonstration program checks, bytes.
pub const DEMO_MEMORY: usize = 32 << 20;
const TOY_MEMORY: usize = 8 << 20;
/// Threads of the program: its first one, the checker, two that pass a turn.
pub const THREADS: u64 = 4;

/// What the threads have done so far.
#[derive(Debug, Default)]
struct Counts {
    /// Complete passes over the memory.
    passes: AtomicU64,
    /// Turns passed between the two players.
    turns: AtomicU64,
    /// A word of memory was wrong.
    damaged: AtomicBool,
}

impl Counts {
    /// Starts the checker and the two players.
    fn start(bytes: usize) -> Arc<Self> {
        let counts = Arc::new(Self::default());
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || check_memory(&shared, bytes / 8));
        let turn = Arc::new((Mutex::new(0u64), Condvar::new()));
        for player in 0..2 {
            let (counts, turn) = (Arc::clone(&counts), Arc::clone(&turn));
            std::thread::spawn(move || play(&counts, &turn, player));
        }
        counts
    }

    fn code(&self) -> u8 {
        u8::from(self.damaged.load(Ordering::Relaxed))
    }
}

/// Checks each word against the pattern of this pass and writes that of the next.
fn check_memory(counts: &Counts, words: usize) {
    // A seed of this run: two copies of the program never have the same memory.
    let seed = RandomState::new().hash_one(words);
    let word = |i: usize, pass: u64| (i as u64 ^ seed ^ pass).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut memory: Vec<u64> = (0..words).map(|i| word(i, 0)).collect();
    for pass in 0.. {
        for (i, value) in memory.iter_mut().enumerate() {
            if *value != word(i, pass) {
                counts.damaged.store(true, Ordering::Relaxed);
            }
            *value = word(i, pass + 1);
        }
        counts.passes.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for the turn, takes it, passes it on: a futex wait and wake for each.
fn play(counts: &Counts, turn: &(Mutex<u64>, Condvar), player: u64) {
    let (turn, changed) = turn;
    loop {
        let now = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let now = changed.wait_while(now, |n| *n % 2 != player);
        *now.unwrap_or_else(PoisonError::into_inner) += 1;
        counts.turns.fetch_add(1, Ordering::Relaxed);
        changed.notify_one();
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `vosrun __toy`: answers each line of its input with the line and its counts, until the
/// input ends; exit code 1 when its memory was damaged.
///
/// # Errors
/// When input or output fail.
pub fn lines() -> anyhow::Result<u8> {
    let counts = Counts::start(TOY_MEMORY);
    for line in io::stdin().lock().lines() {
        let (passes, turns) =
            (counts.passes.load(Ordering::Relaxed), counts.turns.load(Ordering::Relaxed));
        print(&format!("{} {passes} {turns} {}\n", line?, counts.code()))?;
    }
    Ok(counts.code())
}

/// `vosrun __demo-app`: draws its counts twenty times a second and shows the keys typed,
/// until `q`.
///
/// # Errors
/// When the terminal fails.
pub fn animation() -> anyhow::Result<u8> {
    let counts = Counts::start(DEMO_MEMORY);
    let _mode = KeyMode::enter()?;
    let mut frame = Frame::new();
    while !frame.read_keys()? {
        print(&frame.draw(&counts))?;
    }
    Ok(counts.code())
}

/// Keys without echo, one at a time; undone when dropped.
struct KeyMode(Option<Termios>);

impl KeyMode {
    fn enter() -> nix::Result<Self> {
        let Ok(old) = tcgetattr(io::stdin()) else { return Ok(Self(None)) };
        let mut mode = old.clone();
        mode.local_flags -= LocalFlags::ICANON | LocalFlags::ECHO;
        mode.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        mode.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        tcsetattr(io::stdin(), SetArg::TCSANOW, &mode)?;
        Ok(Self(Some(old)))
    }
}

impl Drop for KeyMode {
    fn drop(&mut self) {
        if let Some(old) = &self.0 {
            // The terminal may be gone; there is nobody left to tell.
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, old);
        }
    }
}

/// Time between two frames.
const TICK: Duration = Duration::from_millis(50);

struct Frame {
    tick: u64,
    started: Instant,
    last: Instant,
    longest: Duration,
    keys: String,
}

impl Frame {
    fn new() -> Self {
        let now = Instant::now();
        Self { tick: 0, started: now, last: now, longest: Duration::ZERO, keys: String::new() }
    }

    /// Sleeps one tick or until a key; true when the program shall end.
    fn read_keys(&mut self) -> io::Result<bool> {
        let next = self.started + TICK * u32::try_from(self.tick + 1).unwrap_or(u32::MAX);
        let left = next.saturating_duration_since(Instant::now());
        let stdin = io::stdin();
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(false),
            other => other?,
        };
        let mut buf = [0; 16];
        let n = stdin.lock().read(&mut buf)?;
        self.keys.extend(buf[..n].iter().map(|&b| b as char).filter(char::is_ascii_graphic));
        Ok(n == 0 || self.keys.ends_with('q'))
    }

    fn draw(&mut self, counts: &Counts) -> String {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
        self.tick += 1;
        let lines = [
            format!("pid {}  host {}", std::process::id(), host_name()),
            format!("tick {}", self.tick),
            format!("clock {:.1} s", self.started.elapsed().as_secs_f64()),
            format!(
                "memory {} MiB, checked {} times {}",
                DEMO_MEMORY >> 20,
                counts.passes.load(Ordering::Relaxed),
                if counts.code() == 0 { "✔" } else { "✘ DAMAGED" }
            ),
            format!("threads {THREADS}, {} turns", counts.turns.load(Ordering::Relaxed)),
            format!("longest gap {} ms", self.longest.as_millis()),
            format!("keys {}", self.keys),
            ball(self.tick),
        ];
        let body: String = lines.iter().map(|line| format!("{line}\x1b[K\r\n")).collect();
        format!("\x1b[H{body}\x1b[J")
    }
}

/// A ball that goes to and fro between two walls.
fn ball(tick: u64) -> String {
    const WAY: u64 = 26;
    let step = tick % (2 * WAY);
    let at = step.min(2 * WAY - step);
    format!("▐{}●{}▌", pad("", at as usize), pad("", (WAY - at) as usize))
}

/// The name that uname(2) gives.
fn host_name() -> String {
    let name = nix::sys::utsname::uname();
    name.map_or_else(|_| "?".into(), |n| n.nodename().to_string_lossy().into_owned())
}

/// Cuts a program's output into the frames that [`animation`] draws.
#[derive(Debug, Default)]
pub struct Frames {
    text: Vec<u8>,
}

impl Frames {
    /// Takes bytes of the terminal and gives the frames that are complete now.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Vec<String>> {
        self.text.extend_from_slice(bytes);
        let mut frames = Vec::new();
        while let Some(end) = find(&self.text, b"\x1b[J") {
            let frame: Vec<u8> = self.text.drain(..end + 3).collect();
            let start = find(&frame, b"\x1b[H").map_or(0, |at| at + 3);
            let text = String::from_utf8_lossy(&frame[start..end]).replace("\x1b[K", "");
            // The terminal turns a line feed into carriage return and line feed (ONLCR).
            let line = |line: &str| super::human::clean(line.trim_end_matches('\r'));
            frames.push(text.split('\n').map(line).filter(|l| !l.is_empty()).collect());
        }
        frames
    }

    /// What came after the last frame: an error message, as a rule.
    pub fn rest(&self) -> String {
        super::human::clean(String::from_utf8_lossy(&self.text).trim())
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}

/// The figure after a word in a frame: `number(frame, "tick ")`.
pub fn number(frame: &[String], word: &str) -> Option<u64> {
    let line = frame.iter().find_map(|line| line.split(word).nth(1))?;
    let digits: String = line.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The rest of the line that starts with a word.
pub fn words<'a>(frame: &'a [String], word: &str) -> &'a str {
    frame.iter().find_map(|line| line.strip_prefix(word)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let counts = Counts::default();
        counts.passes.store(41, Ordering::Relaxed);
        let mut frame = Frame::new();
        let text = (frame.draw(&counts) + &frame.draw(&counts)).replace('\n', "\r\n");
        for cut in [1, 5, 40, text.len() - 2] {
            let mut frames = Frames::default();
            let mut all = Vec::new();
            for part in text.as_bytes().chunks(cut) {
                all.extend(frames.take(part));
            }
            assert_eq!(all.len(), 2, "cut at {cut}");
            assert_eq!(number(&all[0], "tick "), Some(1));
            assert_eq!(number(&all[1], "tick "), Some(2));
            assert_eq!(number(&all[1], "checked "), Some(41));
            assert!(all[0].iter().all(|line| line.chars().count() <= 40), "{all:?}");
            assert!(!all[0].iter().any(|line| line.contains('\\')), "{all:?}");
        }
    }

    #[test]
    fn the_ball_stays_between_the_walls() {
        let width = ball(0).chars().count();
        assert!((0..200).all(|tick| ball(tick).chars().count() == width));
    }

    #[test]
    fn the_checker_sees_no_damage_of_its_own() {
        let counts = Counts::start(1 << 16);
        while counts.passes.load(Ordering::Relaxed) < 3 || counts.turns.load(Ordering::Relaxed) < 4
        {
            std::thread::yield_now();
        }
        assert_eq!(counts.code(), 0);
    }
}
