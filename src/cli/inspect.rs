//! `vosrun inspect`: everything known of one job.

use std::collections::BTreeMap;

use serde_json::json;

use super::check;
use super::error::Fail;
use super::human::{age_since, amount, clean, count, duration, size};
use super::out::{print, print_json, Paint};
use super::ps::{state_word, status_document};
use super::select::{find_job, question, unexpected, Seen, PATIENCE};
use crate::control::{ConnectionStatus, FdStatus, JobState, JobStatus, MoveReport, Reply, Request};
use crate::state::StateDir;

/// Options of `vosrun inspect`.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// Name, id prefix or PID@NODE; may be left out with one job
    job: Option<String>,
}

/// Prints one job.
///
/// # Errors
/// When the job cannot be found or its supervisor does not answer.
pub fn inspect(state: &StateDir, args: &InspectArgs, json: bool) -> anyhow::Result<u8> {
    let seen = find_job(state, args.job.as_deref())?;
    let status = seen.status()?;
    let connections = connections(&seen, status)?;
    if json {
        let mut document = status_document(status);
        document["network"] = json!(connections);
        print_json(document)?;
    } else {
        print(&render(status, &connections, Paint::stdout()))?;
    }
    Ok(0)
}

/// None of a job that runs elsewhere.
fn connections(seen: &Seen, status: &JobStatus) -> Result<Vec<ConnectionStatus>, Fail> {
    if status.connections == 0 {
        return Ok(Vec::new());
    }
    match question(seen, &Request::Connections, PATIENCE)? {
        Reply::Connections(all) => Ok(all),
        _ => Err(unexpected(seen)),
    }
}

/// The picture of a job: a headline, then one labelled line for each subject.
fn render(s: &JobStatus, connections: &[ConnectionStatus], paint: Paint) -> String {
    let mut text = headline(s, paint);
    text += &labelled("Command", &command(s));
    text += &labelled("Tree", &tree(s));
    if s.state != JobState::Away {
        let memory = format!("{} rss: {} private", size(s.rss_bytes), size(s.private_bytes));
        text += &labelled("Memory", &memory);
        text += &labelled("Files", &files(&s.fds));
        text += &residue(&s.fds);
        text += &network(s, connections);
    }
    for (i, line) in s.depends.iter().enumerate() {
        text += &labelled(if i == 0 { "Depends" } else { "" }, &clean(line));
    }
    for (i, report) in s.history.iter().rev().take(5).enumerate() {
        text += &labelled(if i == 0 { "History" } else { "" }, &past_move(report));
    }
    text + &preflight(s, paint)
}

fn labelled(label: &str, line: &str) -> String {
    format!("{label:<10} {line}\n")
}

fn headline(s: &JobStatus, paint: Paint) -> String {
    let pid = s.processes.first().map_or_else(String::new, |p| format!(" (pid {})", p.pid));
    let how = if s.attached { "   adopted" } else { "" };
    let moving = s.moving.as_ref().map_or_else(String::new, |m| format!("   {}", clean(m)));
    format!(
        "{}  {}   {} on {}{pid}   epoch {}{how}{moving}\n",
        paint.strong(&clean(&s.name)),
        s.id,
        state_word(s.state),
        clean(&s.node),
        s.epoch,
    )
}

fn command(s: &JobStatus) -> String {
    let tty = s.tty.as_ref().map_or_else(String::new, |t| format!("   terminal {}", clean(t)));
    let cwd = match s.cwd.as_str() {
        "" => String::new(),
        cwd => format!("   cwd {}", clean(cwd)),
    };
    format!(
        "{}{cwd}   started {} ago on {}{tty}",
        clean(&s.command),
        age_since(s.started_ms),
        clean(&s.home)
    )
}

fn tree(s: &JobStatus) -> String {
    let threads: u32 = s.processes.iter().map(|p| p.threads).sum();
    let pids: Vec<String> = s
        .processes
        .iter()
        .map(|p| match p.host_pid {
            same if same == p.pid => format!("{} {}", clean(&p.comm), p.pid),
            other => format!("{} {} (pid {other} on {})", clean(&p.comm), p.pid, clean(&p.node)),
        })
        .collect();
    format!(
        "{}, {}   {}",
        count(s.processes.len(), "process", "processes"),
        count(threads as usize, "thread", "threads"),
        pids.join(" · ")
    )
}

/// `5 fds: 2 pipe · 3 tty`.
fn files(fds: &[FdStatus]) -> String {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for fd in fds {
        *kinds.entry(&fd.kind).or_default() += 1;
    }
    let kinds: Vec<_> = kinds.iter().map(|(kind, n)| format!("{n} {}", clean(kind))).collect();
    let total = count(fds.len(), "fd", "fds");
    if kinds.is_empty() {
        total
    } else {
        format!("{total}: {}", kinds.join(" · "))
    }
}

/// Descriptors that are no longer what the program itself opened.
fn residue(fds: &[FdStatus]) -> String {
    fds.iter()
        .filter(|fd| fd.binding != "native")
        .map(|fd| labelled("", &format!("fd {} {} {}", fd.fd, clean(&fd.what), clean(&fd.binding))))
        .collect()
}

/// Each connection: its addresses, what it is bound to, bytes both ways, and whose it is.
fn network(s: &JobStatus, all: &[ConnectionStatus]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut text = labelled("Network", &count(all.len(), "connection", "connections"));
    for c in all {
        let comm = s.processes.iter().find(|p| p.pid == c.pid).map_or("", |p| &p.comm);
        let trip = c.rtt_us.map_or_else(String::new, |us| {
            format!("   round trip {}", duration(f64::from(us) / 1000.0))
        });
        let line = format!(
            "{} → {}   {}   {} sent, {} received{trip}   {} {} fd {}",
            c.own,
            c.peer,
            clean(&c.binding),
            amount(c.sent),
            amount(c.received),
            clean(comm),
            c.pid,
            c.fd
        );
        text += &labelled("", &line);
    }
    text
}

fn past_move(m: &MoveReport) -> String {
    format!(
        "{} ago {}→{} ok pause {} {} ({})",
        age_since(m.at_ms),
        clean(&m.from),
        clean(&m.to),
        duration(m.pause_ms),
        amount(m.bytes_memory),
        m.id
    )
}

fn preflight(s: &JobStatus, paint: Paint) -> String {
    if s.state == JobState::Away {
        let there = format!("vosrun check {} on {} says what hinders a move", s.id, clean(&s.node));
        return labelled("Preflight", &there);
    }
    if s.blockers.is_empty() {
        let fine = format!(
            "{} movable   (vosrun check {} --to NODE for a target-specific answer)",
            paint.good("✔"),
            s.id
        );
        return labelled("Preflight", &fine);
    }
    labelled("Preflight", &paint.bad("not movable")) + &check::findings(&s.blockers, paint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ps::tests::{blocker, status};

    fn fd(fd: i32, kind: &str, what: &str, binding: &str) -> FdStatus {
        FdStatus { fd, kind: kind.into(), what: what.into(), binding: binding.into() }
    }

    fn connection(fd: i32, own: &str, peer: &str) -> ConnectionStatus {
        let (own, peer) = (own.parse().unwrap(), peer.parse().unwrap());
        let binding = "forwarded via a".into();
        ConnectionStatus { pid: 7, fd, own, peer, binding, sent: 0, received: 0, rtt_us: None }
    }

    #[test]
    fn picture() {
        let first = connection(5, "10.0.0.1:80", "10.0.0.9:5000");
        let (binding, rtt_us) = ("native".into(), Some(12_000));
        let connections = [
            ConnectionStatus { binding, sent: 2000, received: 7, rtt_us, ..first },
            connection(6, "[::1]:80", "[::1]:5001"),
        ];
        let job = JobStatus {
            fds: vec![
                fd(0, "tty", "/dev/pts/3", "forwarded via a"),
                fd(1, "tty", "/dev/pts/3", "forwarded via a"),
                fd(3, "pipe", "pipe:[12]", "native"),
            ],
            depends: vec!["home a (terminal)".into()],
            ..status("api")
        };
        assert_eq!(
            render(&job, &connections, Paint::default()),
            "api  a4a4a4a4   RUNNING on b (pid 7)   epoch 5\n\
             Command    /usr/bin/api -x   cwd /var/lib/api   started 6h12m ago on a   terminal /dev/pts/3\n\
             Tree       1 process, 6 threads   api 7 (pid 4711 on b)\n\
             Memory     11.2G rss: 10.2G private\n\
             Files      3 fds: 1 pipe · 2 tty\n           \
                        fd 0 /dev/pts/3 forwarded via a\n           \
                        fd 1 /dev/pts/3 forwarded via a\n\
             Network    2 connections\n           \
                        10.0.0.1:80 → 10.0.0.9:5000   native   2.00 kB sent, 7 B received   round trip 12 ms   api 7 fd 5\n           \
                        [::1]:80 → [::1]:5001   forwarded via a   0 B sent, 0 B received   api 7 fd 6\n\
             Depends    home a (terminal)\n\
             History    2m ago a→b ok pause 87 ms 2.13 GB (m-7f3a0001)\n\
             Preflight  ✔ movable   (vosrun check a4a4a4a4 --to NODE for a target-specific answer)\n"
        );
    }

    #[test]
    fn blockers_are_listed() {
        let job = JobStatus { blockers: vec![blocker()], ..status("api") };
        let text = render(&job, &[], Paint::default());
        assert!(text.contains("Preflight  not movable\n ✘ VOS-DEV"), "{text}");
    }
}
