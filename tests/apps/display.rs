//! Clients of an X server that are moved while their windows stay with it. The server is at their home and no part
//! of the job, and is reached over TCP alone. What it shows is read from its own memory; another client of it is
//! told of every window that comes or goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::Signal;

use super::common::hosts::Hosts;
use super::common::job::{needs, Job, Program, Start};
use super::common::procs::{self, Done};
use super::common::until;
use super::servers::{client, free_port, serve, shut_down, verdict};
use super::LONG;

/// Pixels of the screen, in the middle of which is the mouse pointer.
const WIDTH: usize = 400;
const HEIGHT: usize = 300;

/// Lines of pixels that a window has. That of the job is the uppermost, then comes that of its twin.
const BAND: usize = 56;

/// Where the job goes.
const ROUTE: [usize; 4] = [1, 0, 1, 0];

/// Names of windows.
const OWN: &str = "own";
const TWIN: &str = "twin";

struct Screen<'h> {
    hosts: &'h Hosts,
    dir: PathBuf,
    display: String,
    server: Job<'h>,
    events: Job<'h>,
    /// What the job's window has shown.
    seen: Vec<u8>,
}

impl<'h> Screen<'h> {
    fn open(hosts: &'h Hosts) -> Result<Self> {
        let (xvfb, xev, xprop) = (needs("Xvfb")?, needs("xev")?, needs("xprop")?);
        let (dir, port) = (hosts.fresh_dir("screen")?, free_port()?);
        let number = port.checked_sub(6000).context("a port that no display has")?;
        let words = format!(
            "-listen tcp -nolisten inet6 -nolisten unix -nolisten local -noreset -r \
             -screen 0 {WIDTH}x{HEIGHT}x24 :{number} -fbdir"
        );
        let xvfb = Program::new(xvfb).args(words.split(' ')).args([dir.display()]);
        let server = serve(hosts, Start::Native, xvfb, port)?;
        // It would stay if the server were killed, and nobody else looks for it: the port is taken.
        let _ = fs::remove_file(format!("/tmp/.X{number}-lock"));
        let display = format!("127.0.0.1:{number}");
        let words = ["-root", "-event", "substructure", "-event", "property"];
        let events = client(hosts, Program::new(xev).args(words).env("DISPLAY", &display))?;
        let own = Self { hosts, dir, display, server, events, seen: Vec::new() };
        until(LONG, "an event", || {
            let poke = ["-root", "-f", "POKE", "8s", "-set", "POKE", "once more"];
            own.ask(&xprop, &poke)?.good("xprop")?;
            Ok(own.events.stdout.text().contains("PropertyNotify").then_some(()))
        })
        .with_context(|| format!("{} {}", own.server.said(), own.events.said()))?;
        Ok(own)
    }

    fn program(&self, path: PathBuf) -> Program {
        Program::new(path).env("DISPLAY", &self.display)
    }

    fn command(&self, path: &Path, words: &[&str]) -> Command {
        let mut command = self.hosts.command(0, path);
        command.env("DISPLAY", &self.display).args(words);
        command
    }

    fn ask(&self, path: &Path, words: &[&str]) -> Result<Done> {
        procs::run(&mut self.command(path, words), LONG)
    }

    /// The id of a window that is shown; empty if there is none.
    fn find(&self, name: &str) -> Result<String> {
        let words = ["search", "--onlyvisible", "--classname", &format!("^{name}$")];
        Ok(self.ask(&needs("xdotool")?, &words)?.stdout.trim().to_owned())
    }

    /// Waits for a window; gives its id.
    fn window(&self, name: &str) -> Result<String> {
        until(LONG, "a window", || Ok(Some(self.find(name)?).filter(|id| !id.is_empty())))
    }

    /// What windows have come to.
    fn events(&self) -> Vec<String> {
        let text = self.events.stdout.text();
        let names = text.lines().filter_map(|line| line.split_once(" event, serial "));
        names.map(|(name, _)| name.to_owned()).filter(|name| name != "PropertyNotify").collect()
    }

    /// Waits until the job's window shows something that it did not show before; with a twin the same as that.
    fn changes(&mut self, job: &mut Job<'_>, twin: Option<&Job<'_>>) -> Result<()> {
        let bytes = BAND * WIDTH * 4;
        until(LONG, "another picture", || {
            ensure!(job.child.try_wait()?.is_none(), "the client ended");
            let file = fs::read(self.dir.join("Xvfb_screen0"))?;
            let header =
                file.len().checked_sub(HEIGHT * WIDTH * 4).context("a part of a picture")?;
            let (now, others) = file[header..].split_at(bytes);
            let blank = now.chunks(4).all(|pixel| *pixel == now[..4]);
            let right = twin.is_none() || *now == others[..bytes];
            let good = !blank && right && *now != self.seen;
            Ok(good.then(|| self.seen = now.to_vec()))
        })
        .with_context(|| format!("{} {}", job.said(), self.server.said()))
    }

    /// Moves a client to and fro. `turn` makes the move that it is told, the first time none, and waits for the
    /// right picture.
    fn stays(
        &mut self,
        job: &mut Job<'_>,
        mut turn: impl FnMut(&mut Self, &mut Job<'_>, Option<usize>) -> Result<()>,
    ) -> Result<()> {
        let window = self.window(OWN)?;
        turn(self, job, None).context("before the first move")?;
        let events = self.events();
        if job.start == Start::Attached {
            job.attach()?;
        }
        for (n, to) in ROUTE.into_iter().enumerate() {
            let to = (job.start != Start::Native).then_some(to);
            turn(self, job, to).with_context(|| format!("move {n}"))?;
            let now = self.find(OWN)?;
            ensure!(now == window, "window {window} is {now:?} after move {n}: {}", job.said());
            ensure!(self.events() == events, "{:?}, now {:?}", events, self.events());
        }
        Ok(())
    }

    /// Ends, after the job's client, which was the first window to go.
    fn close(self) -> Result<()> {
        until(LONG, "the end of the window", || {
            Ok(self.events().iter().any(|event| event == "DestroyNotify").then_some(()))
        })?;
        let events = self.events();
        let gone =
            events.iter().filter(|event| *event == "UnmapNotify" || *event == "DestroyNotify");
        ensure!(gone.eq(["UnmapNotify", "DestroyNotify"]), "{events:?}");
        shut_down(self.server, Signal::SIGTERM, 0)
    }
}

fn move_to(job: &mut Job<'_>, to: Option<usize>) -> Result<()> {
    to.map_or(Ok(()), |to| job.migrate(to).map(drop))
}

/// The position of a window, below those before it.
fn place(name: &str) -> String {
    format!("+0+{}", if name == TWIN { BAND } else { 0 })
}

/// A clock shows the time: the same as one that stays.
pub fn xclock(hosts: &Hosts, start: Start) -> Result<()> {
    let (xclock, mut screen) = (needs("xclock")?, Screen::open(hosts)?);
    let clock = |screen: &Screen<'_>, name: &str| {
        let place = format!("{WIDTH}x{BAND}{}", place(name));
        let words = ["-digital", "-update", "1", "-bw", "0", "-name", name, "-geometry", &place];
        screen.program(xclock.clone()).args(words)
    };
    let twin = client(hosts, clock(&screen, TWIN))?;
    let _ = screen.window(TWIN)?;
    let mut job = Job::start_early(hosts, start, clock(&screen, OWN))?;
    screen.stays(&mut job, |screen, job, to| {
        move_to(job, to)?;
        // Not only what was drawn during the move.
        (0..2).try_for_each(|_| screen.changes(job, Some(&twin)))
    })?;
    shut_down(job, Signal::SIGTERM, 143)?;
    screen.close()
}

/// A terminal of four lines, 400 pixels wide, without a mark in utmp(5).
fn xterm(screen: &Screen<'_>, name: &str, script: &str) -> Result<Program> {
    let place = format!("66x4{}", place(name));
    let words = ["-ut", "-ah", "-bw", "0", "-name", name, "-geometry", &place, "-e", "sh", "-c"];
    Ok(screen.program(needs("xterm")?).args(words).args([script]))
}

/// A script in a terminal counts, in the window's title too.
pub fn xterm_counts(hosts: &Hosts, start: Start) -> Result<()> {
    const COUNTING: &str = "n=0
        until [ -e \"$GUEST_STOP\" ]; do
            n=$((n + 1)); printf '\\033]2;%s\\007%s\\n' $n $n; sleep 0.05
        done";
    let mut screen = Screen::open(hosts)?;
    let mut job = Job::start_early(hosts, start, xterm(&screen, OWN, COUNTING)?)?;
    let (mut count, id, xdotool) = (0, screen.window(OWN)?, needs("xdotool")?);
    screen.stays(&mut job, |screen, job, to| {
        move_to(job, to)?;
        (0..3).try_for_each(|_| screen.changes(job, None))?;
        until(LONG, "a higher count", || {
            let title = screen.ask(&xdotool, &["getwindowname", &id])?.good("xdotool")?;
            let now = title.trim().parse::<u64>().unwrap_or(0);
            ensure!(now >= count, "{title} after {count}");
            Ok((now > count).then(|| count = now))
        })
    })?;
    fs::write(job.dir.join("stop"), "")?;
    verdict(&mut job)?;
    job.await_nothing_left()?;
    screen.close()
}

/// Keys are typed into the window of a terminal while it moves, and answered. A twin gets the same.
pub fn xterm_typed(hosts: &Hosts, start: Start) -> Result<()> {
    const ANSWERING: &str = "n=0
        while read -r word && [ \"$word\" != end ]; do
            n=$((n + 1)); echo answer $n to $word
        done";
    let (xdotool, mut screen) = (needs("xdotool")?, Screen::open(hosts)?);
    let twin = client(hosts, xterm(&screen, TWIN, ANSWERING)?)?;
    let twins = screen.window(TWIN)?;
    let mut job = Job::start_early(hosts, start, xterm(&screen, OWN, ANSWERING)?)?;
    let own = screen.window(OWN)?;
    let typing = |screen: &Screen<'_>, window: &str, text: &str| {
        let words = ["windowfocus", "--sync", window, "type", "--delay", "25", text];
        screen.command(&xdotool, &words)
    };
    let mut turns = 0;
    screen.stays(&mut job, |screen, job, to| {
        turns += 1;
        let text = format!("word{turns} of many keys that are typed\n");
        procs::run(&mut typing(screen, &twins, &text), LONG)?.good("xdotool")?;
        let mut typing = typing(screen, &own, &text);
        let (typed, moved) = procs::run_beside(&mut typing, LONG, || move_to(job, to));
        moved?;
        typed?.good("xdotool")?;
        screen.changes(job, Some(&twin))
    })?;
    procs::run(&mut typing(&screen, &own, "end\n"), LONG)?.good("xdotool")?;
    verdict(&mut job)?;
    job.await_nothing_left()?;
    screen.close()
}
