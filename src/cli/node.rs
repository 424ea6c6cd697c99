//! `vosrun node`, `vosrun token`, `vosrun nodes`.

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;
use serde_json::json;

use super::out::{print, print_json};
use super::table::table;
use crate::ids::NodeId;
use crate::migrate::transport::TlsConfig;
use crate::node::client::{self, JoinError};
use crate::node::daemon::{announce, Config, Daemon};
use crate::node::peers::{self, Own};
use crate::node::token::{self, Token};
use crate::node::{identity, tls};
use crate::state::StateDir;

/// How long `token` waits for a daemon that has just been started.
const DAEMON_WAIT: Duration = Duration::from_secs(10);
/// Pause between two looks for that daemon.
const DAEMON_POLL: Duration = Duration::from_millis(50);
/// How long `nodes` waits for each answer.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Options of `vosrun node`.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// This node's name in the community [default: the host name]
    #[arg(long, value_parser = node_name)]
    pub name: Option<String>,
    /// Address to listen on
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:7700", value_parser = address)]
    pub listen: SocketAddr,
    /// Address by which other nodes reach this one, when it is not the one of --listen
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    pub advertise: Option<SocketAddr>,
    /// Join the community of the node that printed this token (`vosrun token`)
    #[arg(long, value_name = "TOKEN")]
    pub join: Option<Token>,
}

/// Options of `vosrun nodes`.
#[derive(Debug, Clone, Args)]
pub struct NodesArgs {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

fn node_name(text: &str) -> Result<String, String> {
    identity::sound_name(text).map(|()| text.to_owned()).map_err(|e| e.to_string())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|e| e.to_string())?;
    found.next().ok_or_else(|| "no such host".to_owned())
}

/// Runs the node daemon until a signal ends it. Returns the exit code.
///
/// # Errors
/// When it cannot listen, or its files cannot be used.
pub fn node(state: &StateDir, args: NodeArgs) -> anyhow::Result<u8> {
    let config = Config {
        name: args.name,
        listen: args.listen,
        advertise: args.advertise,
        join: args.join,
        receiver: PathBuf::from("/proc/self/exe"),
    };
    let mut daemon = match Daemon::start(state, &config) {
        Ok(daemon) => daemon,
        Err(e) => return join_failure(e),
    };
    daemon.watch_signals(take_signals()?)?;
    announce(&daemon.greeting());
    daemon.run()?;
    Ok(0)
}

fn join_failure(error: anyhow::Error) -> anyhow::Result<u8> {
    let join: JoinError = error.downcast()?;
    // One write(2), so that the line stays whole among those of other processes.
    let line = format!("vosrun: {join}\n");
    std::io::stderr().write_all(line.as_bytes())?;
    Ok(join.exit_code())
}

/// From now on these signals are read, not delivered. A write beyond a file size limit is to
/// fail (EFBIG), not to end the daemon.
fn take_signals() -> anyhow::Result<SignalFd> {
    let mut too_large = SigSet::empty();
    too_large.add(Signal::SIGXFSZ);
    too_large.thread_block().context("blocking SIGXFSZ")?;
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        set.add(signal);
    }
    set.thread_block().context("blocking signals")?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    SignalFd::with_flags(&set, flags).context("making a signalfd")
}

/// Prints a join token of this node, waiting for its daemon when that is still starting.
///
/// # Errors
/// When no daemon answers for this state folder, or the token cannot be noted.
pub fn token(state: &StateDir, json: bool) -> anyhow::Result<u8> {
    let tls = tls(state)?;
    let own = running_daemon(state, &tls)?;
    let token = token::issue(state, tls.id(), token::public_address(&own)?)?;
    match json {
        true => print_json(json!({ "token": token.to_string() }))?,
        false => print(&format!("{token}\n"))?,
    }
    Ok(0)
}

/// Where this node's daemon listens; a stale file is found out by asking the daemon.
fn running_daemon(state: &StateDir, tls: &TlsConfig) -> anyhow::Result<Own> {
    let end = Instant::now() + DAEMON_WAIT;
    loop {
        if let Some(own) = peers::own(state)?.filter(|own| answers(own, tls)) {
            return Ok(own);
        }
        if Instant::now() >= end {
            bail!(
                "no node daemon answers for {}: start one with `vosrun node`",
                state.path().display()
            );
        }
        std::thread::sleep(DAEMON_POLL);
    }
}

fn answers(own: &Own, tls: &TlsConfig) -> bool {
    client::ping(&client::local_address(own), tls, tls.id(), PING_TIMEOUT).is_ok()
}

/// One line of `vosrun nodes`.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    id: String,
    address: Option<String>,
    /// `ready`, `unreachable`, or `no daemon` for this node itself.
    state: &'static str,
    rtt_ms: Option<f64>,
    /// Seconds since it was last heard of.
    seen_s: Option<u64>,
    #[serde(rename = "self")]
    own: bool,
}

/// Lists the members of the community, asking each whether it is there.
///
/// # Errors
/// When this node's files cannot be used.
pub fn nodes(state: &StateDir, args: &NodesArgs) -> anyhow::Result<u8> {
    let rows = rows(state)?;
    if args.json {
        print_json(json!({ "nodes": rows }))?;
    } else {
        print(&listing(&rows))?;
    }
    Ok(0)
}

/// A member and where to ask it.
struct Member {
    name: String,
    id: NodeId,
    shown: Option<String>,
    ask: Option<String>,
}

fn rows(state: &StateDir) -> anyhow::Result<Vec<Row>> {
    let tls = tls(state)?;
    let members = members(state, tls.id())?;
    let rtts = ping_all(&members, &tls);
    let heard = members.iter().zip(&rtts).filter(|(m, rtt)| rtt.is_some() && m.id != tls.id());
    let heard: Vec<NodeId> = heard.map(|(m, _)| m.id).collect();
    peers::mark_seen(state, &heard)?;
    let seen = peers::seen(state)?;
    let rows = members.into_iter().zip(rtts).map(|(member, rtt)| {
        let last = seen.get(&member.id.hex()).copied();
        row(member, rtt, last, tls.id())
    });
    Ok(rows.collect())
}

fn members(state: &StateDir, own_id: NodeId) -> anyhow::Result<Vec<Member>> {
    let own = peers::own(state)?;
    let mut members = vec![Member {
        name: identity::name(state)?,
        id: own_id,
        shown: own.as_ref().map(|own| own.advertise.unwrap_or(own.listen).to_string()),
        ask: own.as_ref().map(client::local_address),
    }];
    members.extend(peers::load(state)?.into_iter().map(|p| Member {
        name: p.name,
        id: p.id,
        shown: Some(p.addr.clone()),
        ask: Some(p.addr),
    }));
    Ok(members)
}

/// Asks all members at once; None for those that do not answer.
fn ping_all(members: &[Member], tls: &TlsConfig) -> Vec<Option<Duration>> {
    let ping = |m: &Member| client::ping(m.ask.as_ref()?, tls, m.id, PING_TIMEOUT).ok();
    std::thread::scope(|scope| {
        let threads: Vec<_> = members.iter().map(|m| scope.spawn(move || ping(m))).collect();
        threads.into_iter().map(|t| t.join().ok().flatten()).collect()
    })
}

fn row(member: Member, rtt: Option<Duration>, last_ms: Option<u64>, own_id: NodeId) -> Row {
    let own = member.id == own_id;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let age = last_ms.and_then(|ms| now.ok()?.checked_sub(Duration::from_millis(ms)));
    Row {
        name: member.name,
        id: member.id.to_string(),
        address: member.shown,
        state: match rtt {
            Some(_) => "ready",
            None if own => "no daemon",
            None => "unreachable",
        },
        rtt_ms: rtt.filter(|_| !own).map(|rtt| rtt.as_secs_f64() * 1e3),
        seen_s: if rtt.is_some() { Some(0) } else { age.map(|age| age.as_secs()) },
        own,
    }
}

/// `NODE ID ADDRESS STATE RTT SEEN`.
fn listing(rows: &[Row]) -> String {
    let cells: Vec<_> = rows.iter().map(cells).collect();
    table(&["NODE", "ID", "ADDRESS", "STATE", "RTT", "SEEN"], &cells)
}

fn cells(row: &Row) -> Vec<String> {
    let star = if row.own { "*" } else { "" };
    let dash = || "-".to_owned();
    vec![
        format!("{}{star}", row.name),
        row.id.clone(),
        row.address.clone().unwrap_or_else(dash),
        row.state.to_owned(),
        row.rtt_ms.map_or_else(dash, |ms| format!("{ms:.1}ms")),
        row.seen_s.map_or_else(dash, age),
    ]
}

/// `now`, `5s`, `3m`, `2h`, `4d`.
fn age(seconds: u64) -> String {
    match seconds {
        0 => "now".to_owned(),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |name: &str, own, rtt_ms, seen_s| Row {
            name: name.to_owned(),
            id: "0000-0000".to_owned(),
            address: None,
            state: "ready",
            rtt_ms,
            seen_s,
            own,
        };
        let text =
            listing(&[row("a", true, None, Some(0)), row("gpu-lab2", false, Some(0.32), None)]);
        let expected = "\
NODE      ID         ADDRESS  STATE  RTT    SEEN
a*        0000-0000  -        ready  -      now
gpu-lab2  0000-0000  -        ready  0.3ms  -
";
        assert_eq!(text, expected);
        assert_eq!([age(59), age(60), age(7200), age(200_000)], ["59s", "1m", "2h", "2d"]);
    }
}
