//! Two or three hosts on this machine, each with a node daemon.
//!
//! As root a host is a set of namespaces (network, mount, pid, uts, ipc, time) with its own
//! host name and its own CLOCK_MONOTONIC; every pair of hosts has a veth link. As an ordinary
//! user a host is only a state folder and an address on loopback.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{bail, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use super::build::{self, Flavour};
use super::procs::{self, Done};
use super::{is_root, until, Who, ORDINARY, SOON};

/// Node names, and the letters of hosts.
pub const NAMES: [&str; 3] = ["a", "b", "c"];
const PORT: u16 = 7701;

/// One host.
#[derive(Debug)]
pub struct Host {
    pub name: &'static str,
    pub state_dir: PathBuf,
    pub address: String,
    port: u16,
    /// The uid and gid of an ordinary user's programs there.
    user: u32,
    node: RefCell<Option<Child>>,
    space: Option<Space>,
}

/// The namespaces of a host.
#[derive(Debug)]
struct Space {
    /// `unshare`, which waits for `init` and is killed with it.
    holder: Child,
    /// The first process of the pid namespace, as seen from here.
    init: i32,
}

/// The hosts of one worker, with everything that their programs share.
#[derive(Debug)]
pub struct Hosts {
    pub who: Who,
    pub dir: PathBuf,
    pub hosts: Vec<Host>,
    vosrun: PathBuf,
}

impl Hosts {
    /// Makes `count` hosts whose nodes know each other.
    pub fn start(who: Who, count: usize) -> Result<Self> {
        Self::start_with(who, count, |_, _| {})
    }

    /// As [`Hosts::start`]; `alter` may change the command of each node's daemon, which gets
    /// the host's index.
    pub fn start_with(who: Who, count: usize, alter: impl Fn(usize, &mut Command)) -> Result<Self> {
        let hosts = Self::bare(who, count)?;
        hosts.start_nodes(&alter)?;
        Ok(hosts)
    }

    /// As [`Hosts::start`]; `prepare` runs before the first daemon.
    pub fn start_prepared(
        who: Who,
        count: usize,
        prepare: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        let hosts = Self::bare(who, count)?;
        prepare(&hosts)?;
        hosts.start_nodes(&|_, _| {})?;
        Ok(hosts)
    }

    fn start_nodes(&self, alter: &impl Fn(usize, &mut Command)) -> Result<()> {
        for index in 0..self.hosts.len() {
            self.start_node(index, alter)?;
        }
        self.await_acquainted()
    }

    /// The hosts without daemons.
    pub fn bare(who: Who, count: usize) -> Result<Self> {
        anyhow::ensure!(who == Who::User || is_root(), "hosts with namespaces need root");
        let name = format!("{}-{}-{}", who.word(), std::process::id(), unique());
        let dir = super::run_dir().join(name);
        make_dir(&dir, who)?;
        let mut hosts = Self { who, dir, hosts: Vec::new(), vosrun: build::vosrun()? };
        for (index, name) in NAMES.iter().enumerate().take(count) {
            let space = if who == Who::Root { Some(Space::start(index, name)?) } else { None };
            let state_dir = hosts.dir.join(name);
            make_dir(&state_dir, who)?;
            let (address, port) = hosts.address(index);
            let (user, node) = (ORDINARY, RefCell::new(None));
            hosts.hosts.push(Host { name, state_dir, address, port, user, node, space });
        }
        if who == Who::Root {
            hosts.connect()?;
        }
        Ok(hosts)
    }

    /// Address and port. Addresses of namespaces are their own; on loopback each worker has a
    /// /24, and further ports when it has used that up.
    fn address(&self, index: usize) -> (String, u16) {
        let id = std::process::id() as usize;
        let last = index + 1;
        match self.who {
            Who::Root => (format!("10.99.0.{last}"), PORT),
            Who::User => {
                let (run, turn) = (1 + (id >> 8) % 254, unique());
                let address = format!("127.{run}.{}.{}", id % 256, last + 4 * (turn % 60));
                (address, PORT + (turn / 60) as u16)
            }
        }
    }

    /// A veth pair for each two hosts, and a route to the other's address on it.
    fn connect(&self) -> Result<()> {
        for (i, own) in self.hosts.iter().enumerate() {
            self.ip(i, &["link", "set", "lo", "up"])?;
            self.ip(i, &["addr", "add", &format!("{}/32", own.address), "dev", "lo"])?;
        }
        for i in 0..self.hosts.len() {
            for j in i + 1..self.hosts.len() {
                self.link(i, j)?;
            }
        }
        Ok(())
    }

    fn link(&self, i: usize, j: usize) -> Result<()> {
        let names = [link_name(j), link_name(i)];
        let peer = self.init(j)?.to_string();
        self.ip(
            i,
            &["link", "add", &names[0], "type", "veth", "peer", "name", &names[1], "netns", &peer],
        )?;
        for (own, other, name) in [(i, j, &names[0]), (j, i, &names[1])] {
            let address = &self.hosts[own].address;
            let to = format!("{}/32", self.hosts[other].address);
            self.ip(own, &["link", "set", name, "up"])?;
            self.ip(own, &["route", "add", &to, "dev", name, "src", address])?;
        }
        Ok(())
    }

    fn init(&self, index: usize) -> Result<i32> {
        self.hosts[index].space.as_ref().map(|s| s.init).context("the host has no namespaces")
    }

    fn ip(&self, index: usize, args: &[&str]) -> Result<()> {
        self.in_network(index, "ip", args)
    }

    /// Runs a command in a host's network namespace.
    fn in_network(&self, index: usize, program: &str, args: &[&str]) -> Result<()> {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init(index)?.to_string(), "-n", program]).args(args);
        procs::run(&mut command, SOON)?.good(&format!("{program} {}", args.join(" ")))?;
        Ok(())
    }

    /// Limits what goes over the link between two hosts, each way (only with namespaces; `rate` as
    /// in tc(8)).
    pub fn slow_link(&self, i: usize, j: usize, rate: &str) -> Result<()> {
        for (own, other) in [(i, j), (j, i)] {
            let link = ["qdisc", "replace", "dev", &link_name(other), "root"].map(str::to_owned);
            let limit = ["tbf", "rate", rate, "burst", "64kb", "latency", "400ms"];
            let words: Vec<&str> = link.iter().map(String::as_str).chain(limit).collect();
            self.in_network(own, "tc", &words)?;
        }
        Ok(())
    }

    /// Cuts or mends the link between two hosts (only with namespaces).
    pub fn set_link(&self, i: usize, j: usize, up: bool) -> Result<()> {
        let word = if up { "up" } else { "down" };
        self.ip(i, &["link", "set", &link_name(j), word])?;
        if up {
            // The kernel takes the route away with the link.
            let to = format!("{}/32", self.hosts[j].address);
            let own = self.hosts[i].address.clone();
            self.ip(i, &["route", "replace", &to, "dev", &link_name(j), "src", &own])?;
        }
        Ok(())
    }

    /// A command on a host, as the right user, with a small environment.
    pub fn command(&self, index: usize, program: &Path) -> Command {
        self.command_in(index, &self.dir, &[], program)
    }

    /// As [`Hosts::command`], in another directory; the words `via` stand before the program.
    pub fn command_in(&self, index: usize, dir: &Path, via: &[&str], program: &Path) -> Command {
        let host = &self.hosts[index];
        let mut words: Vec<OsString> = Vec::new();
        if let Some(space) = &host.space {
            let target = space.init.to_string();
            let enter = ["nsenter", "-t", &target, "-n", "-m", "-p", "-u", "-i", "-T", "--"];
            words.extend(enter.map(OsString::from));
            // Entering a mount namespace changes to its root.
            words.extend(["env".into(), "-C".into(), dir.into()]);
        }
        words.extend(via.iter().map(OsString::from));
        words.push(program.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.env_clear();
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command.env("LANG", "C.UTF-8").env("TERM", "xterm").env("HOME", &host.state_dir);
        if let Some(filter) = std::env::var_os("VOSRUN_LOG") {
            command.env("VOSRUN_LOG", filter);
        }
        command.current_dir(dir);
        if self.who == Who::User && is_root() {
            command.uid(host.user).gid(host.user);
        }
        command
    }

    /// The vosrun that is tested.
    pub fn vosrun_path(&self) -> &Path {
        &self.vosrun
    }

    /// From now on a host without namespaces is another user's. Needs root.
    pub fn give_to(&mut self, index: usize, user: u32) -> Result<()> {
        let host = &mut self.hosts[index];
        host.user = user;
        Ok(chown(&host.state_dir, Some(user), Some(user))?)
    }

    /// `vosrun --state-dir …` on a host.
    pub fn vosrun(&self, index: usize) -> Command {
        self.vosrun_in(index, &self.dir, &[])
    }

    /// As [`Hosts::vosrun`], in another directory; the words `via` stand before it.
    pub fn vosrun_in(&self, index: usize, dir: &Path, via: &[&str]) -> Command {
        let mut command = self.command_in(index, dir, via, &self.vosrun);
        command.arg("--state-dir").arg(&self.hosts[index].state_dir);
        command
    }

    /// Runs `vosrun ARGS` on a host to its end.
    pub fn run(&self, index: usize, args: &[&str]) -> Result<Done> {
        procs::run(self.vosrun(index).args(args), Duration::from_secs(60))
    }

    /// Starts the daemon of a host; all but the first join the first.
    pub fn start_node(&self, index: usize, alter: &impl Fn(usize, &mut Command)) -> Result<()> {
        self.start_node_via(index, &[], alter)
    }

    /// As [`Hosts::start_node`], of a user who may make no namespaces: in a user namespace that
    /// allows none (`user.max_user_namespaces`), without capabilities.
    pub fn start_refused_node(&self, index: usize) -> Result<()> {
        // What this process can never get the namespace has all the same.
        let status = fs::read_to_string("/proc/self/status")?;
        let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let bounding = u64::from_str_radix(bounding.unwrap_or_default().trim(), 16)?;
        let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse::<u32>()?;
        let lacking = (0..=last).filter(|cap| bounding >> cap & 1 == 0);
        let lacking: Vec<String> = lacking.map(|cap| format!("-cap_{cap}")).collect();
        let lacking = match lacking.is_empty() {
            true => String::new(),
            false => format!("--bounding-set={}", lacking.join(",")),
        };
        let without = format!(
            "echo 0 > /proc/sys/user/max_user_namespaces && exec \
             setpriv {lacking} --inh-caps=-all --ambient-caps=-all \"$@\""
        );
        let via = ["unshare", "--map-current-user", "--keep-caps", "sh", "-c", &without, "sh"];
        self.start_node_via(index, &via, &|_, _| {})
    }

    /// As [`Hosts::start_node`]; the words `via` stand before the daemon.
    pub fn start_node_via(
        &self,
        index: usize,
        via: &[&str],
        alter: &impl Fn(usize, &mut Command),
    ) -> Result<()> {
        let token = match index {
            0 => None,
            _ => Some(self.token().with_context(|| self.log(0))?),
        };
        let mut child = self.spawn_node(index, via, token.as_deref(), alter)?;
        let own = self.hosts[index].name;
        let ready = until(SOON, &format!("node {own} is ready"), || {
            if let Some(end) = child.try_wait()? {
                bail!("the daemon ended: {end}");
            }
            Ok(self.ready_nodes(index)?.contains(own).then_some(()))
        });
        *self.hosts[index].node.borrow_mut() = Some(child);
        ready.with_context(|| self.log(index))
    }

    fn token(&self) -> Result<String> {
        Ok(self.run(0, &["token"])?.good("token")?.trim().to_owned())
    }

    /// Names of the nodes that answer, as `vosrun nodes` on a host has them.
    fn ready_nodes(&self, index: usize) -> Result<HashSet<String>> {
        let done = self.run(index, &["nodes", "--json"])?;
        let document: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
        let nodes = document["nodes"].as_array().cloned().unwrap_or_default();
        let ready = nodes.iter().filter(|n| n["state"] == "ready");
        Ok(ready.filter_map(|n| n["name"].as_str().map(str::to_owned)).collect())
    }

    /// The pid of a host's daemon, as seen from here.
    pub fn node_pid(&self, index: usize) -> Option<i32> {
        let own = self.hosts[index].node.borrow().as_ref()?.id() as i32;
        match self.who {
            Who::User => Some(own),
            Who::Root => procs::descendants(own).first().copied(),
        }
    }

    /// Changes a limit of a host's daemon, by an option of prlimit(1); without namespaces only.
    pub fn limit_node(&self, index: usize, option: &str) -> Result<()> {
        let pid = self.node_pid(index).context("no node")?;
        let mut command = self.command(index, Path::new("/usr/bin/prlimit"));
        command.args(["--pid", &pid.to_string(), option]);
        procs::run(&mut command, SOON)?.good("prlimit").map(drop)
    }

    fn spawn_node(
        &self,
        index: usize,
        via: &[&str],
        token: Option<&str>,
        alter: &impl Fn(usize, &mut Command),
    ) -> Result<Child> {
        let host = &self.hosts[index];
        let listen = format!("{}:{}", host.address, host.port);
        let log = fs::File::options().create(true).append(true).open(self.log_path(index))?;
        let mut command = self.vosrun_in(index, &self.dir, via);
        command.args(["node", "--name", host.name, "--listen", &listen]);
        if let Some(token) = token {
            command.args(["--join", token]);
        }
        alter(index, &mut command);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        Ok(command.spawn()?)
    }

    /// Waits until every node reaches every other one.
    fn await_acquainted(&self) -> Result<()> {
        for index in 0..self.hosts.len() {
            until(SOON, &format!("node {} knows the others", self.hosts[index].name), || {
                Ok((self.ready_nodes(index)?.len() == self.hosts.len()).then_some(()))
            })
            .with_context(|| self.log(index))?;
        }
        Ok(())
    }

    fn log_path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("{}.log", self.hosts[index].name))
    }

    /// The end of the log of a host's daemon.
    pub fn log(&self, index: usize) -> String {
        let text = fs::read_to_string(self.log_path(index)).unwrap_or_default();
        format!("log of {}:\n{}", self.hosts[index].name, tail(&text, 15))
    }

    /// What a person would look at when a test fails.
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        for (index, host) in self.hosts.iter().enumerate() {
            text += &format!("{}\n", self.log(index));
            let jobs = fs::read_dir(host.state_dir.join("jobs")).into_iter().flatten().flatten();
            for job in jobs {
                let log = fs::read_to_string(job.path().join("log")).unwrap_or_default();
                text += &format!("{}:\n{}\n", job.path().display(), tail(&log, 12));
            }
        }
        text
    }

    /// Kills the daemon of a host (SIGKILL) and waits for its end.
    pub fn kill_node(&self, index: usize) -> Result<()> {
        let pid = self.node_pid(index).context("the node is not running")?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        if let Some(mut child) = self.hosts[index].node.borrow_mut().take() {
            procs::wait(&mut child, SOON, "the node")?;
        }
        Ok(())
    }

    /// Gives a file to the user that the programs of these hosts run as.
    pub fn give(&self, path: &Path) -> Result<()> {
        if self.who == Who::User && is_root() {
            chown(path, Some(ORDINARY), Some(ORDINARY))?;
        }
        Ok(())
    }

    /// A fresh folder that the programs of these hosts may write to.
    pub fn fresh_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(format!("{name}-{}", unique()));
        make_dir(&dir, self.who)?;
        Ok(dir)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            if let Some(mut node) = host.node.borrow_mut().take() {
                procs::kill_tree(node.id() as i32);
                let _ = node.wait();
            }
            if let Some(mut space) = host.space.take() {
                drop(space.holder.stdin.take());
                let _ = procs::wait(&mut space.holder, SOON, "a host");
                let _ = space.holder.kill();
            }
        }
        if std::env::var_os("VOSRUN_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

impl Space {
    fn start(index: usize, name: &str) -> Result<Self> {
        let init = build::guest("host_init", Flavour::Plain)?;
        let offset = (index * 100_000).to_string();
        let mut command = Command::new("unshare");
        command.args(["-n", "-m", "-p", "-u", "-i", "-T", "--fork", "--kill-child"]);
        command.args(["--mount-proc", "--monotonic", &offset, "--boottime", &offset]);
        command.args(["sh", "-c", "hostname \"$1\" && exec \"$2\"", "sh", &format!("host-{name}")]);
        command.arg(init).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().context("unshare")?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let init = procs::descendants(holder.id() as i32).first().copied();
        match init {
            Some(init) if line.trim() == "READY" => Ok(Self { holder, init }),
            _ => {
                procs::kill_tree(holder.id() as i32);
                bail!("unshare does not make a host here")
            }
        }
    }
}

fn link_name(other: usize) -> String {
    format!("to-{}", NAMES[other])
}

fn make_dir(dir: &Path, who: Who) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    if who == Who::User && is_root() {
        chown(dir, Some(ORDINARY), Some(ORDINARY))?;
    }
    Ok(())
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A number that this process has not used before.
pub fn unique() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
