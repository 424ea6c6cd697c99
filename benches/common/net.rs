//! Hosts as network namespaces of this machine, joined by veth pairs.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::run;

/// No command on a host takes longer.
const LIMIT: Duration = Duration::from_secs(20);

/// A network namespace with an address of its own. Dropping it ends what holds it; a process in
/// it may live on.
pub struct Net {
    pub address: String,
    name: &'static str,
    holder: Child,
}

impl Net {
    /// The host `name` with the address 10.98.0.`last`.
    ///
    /// # Errors
    /// When this user may make no network namespace.
    pub fn new(name: &'static str, last: u8) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", "ip link set lo up && echo up && exec cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().context("unshare")?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("no standard output")?).read_line(&mut line)?;
        let net = Self { address: format!("10.98.0.{last}"), name, holder };
        ensure!(line.trim() == "up", "no network namespace can be made: it needs root");
        net.ip(&["addr", "add", &format!("{}/32", net.address), "dev", "lo"])?;
        Ok(net)
    }

    /// The words before a command that is to run on this host.
    pub fn enter(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        ["nsenter", "-t", &pid, "-n", "--"].map(str::to_owned).into()
    }

    /// A program on this host.
    pub fn command(&self, program: &str) -> Command {
        let words = self.enter();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program);
        command
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        run(self.command("ip").args(args), LIMIT).map(drop)
    }

    /// A veth pair between two hosts, and each one's route to the other on it.
    ///
    /// # Errors
    /// With what ip(8) says.
    pub fn join(&self, other: &Self) -> Result<()> {
        let (own, far) = (self.link(other), other.link(self));
        let peer = other.holder.id().to_string();
        self.ip(&["link", "add", &own, "type", "veth", "peer", "name", &far, "netns", &peer])?;
        for (net, to) in [(self, other), (other, self)] {
            let link = net.link(to);
            net.ip(&["link", "set", &link, "up"])?;
            let route = format!("{}/32", to.address);
            net.ip(&["route", "add", &route, "dev", &link, "src", &net.address])?;
        }
        Ok(())
    }

    /// Limits what each of the two sends to the other (tc-tbf(8)).
    ///
    /// # Errors
    /// With what tc(8) says.
    pub fn limit(&self, other: &Self, rate: &str) -> Result<()> {
        for (net, to) in [(self, other), (other, self)] {
            let mut tc = net.command("tc");
            tc.args(["qdisc", "replace", "dev", &net.link(to), "root", "tbf"]);
            tc.args(["rate", rate, "burst", "256kb", "latency", "10ms"]);
            run(&mut tc, LIMIT)?;
        }
        Ok(())
    }

    fn link(&self, to: &Self) -> String {
        format!("to-{}", to.name)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
