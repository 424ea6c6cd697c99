//! The ends of the connections that are measured, and what forwards them for comparison.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::net::Net;
use super::nodes::Nodes;
use super::{run, words, Scratch};

/// No answer takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// A process that is killed when this is dropped.
pub struct Running(Child);

impl Running {
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {}", words(command)))?;
        Ok(Self(child))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `benches/guests/connection.c` as a client, connected.
pub struct Client {
    child: Child,
    orders: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Client {
    /// Connects from a host.
    ///
    /// # Errors
    /// When nobody accepts within ten seconds.
    pub fn connect(from: &Net, program: &Path, address: &str, port: u16) -> Result<Self> {
        let mut command = from.command(&program.to_string_lossy());
        command.args(["client", address, &port.to_string()]);
        Self::start(command)
    }

    /// The same under vosrun, on node `a`: a job of this name.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn job(
        nodes: &Nodes,
        name: &str,
        program: &Path,
        address: &str,
        port: u16,
    ) -> Result<Self> {
        let mut command = nodes.launch(name, program);
        command.args(["client", address, &port.to_string()]);
        Self::start(command)
    }

    fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", words(&command)))?;
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let orders = child.stdin.take().context("no standard input")?;
        let (send, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|l| send.send(l)));
        let client = Self { child, orders, lines };
        client.line().with_context(|| words(&command))?;
        Ok(client)
    }

    fn line(&self) -> Result<String> {
        self.lines.recv_timeout(LIMIT).context("the client does not answer")
    }

    /// Sends a line without waiting for its answer.
    ///
    /// # Errors
    /// When the client has ended.
    pub fn tell(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders, "{order}").context("the client has ended")
    }

    /// Gives an order; the number that comes back.
    ///
    /// # Errors
    /// When there is none within a minute.
    pub fn ask(&mut self, order: &str) -> Result<f64> {
        self.tell(order)?;
        self.answer().with_context(|| order.to_owned())
    }

    /// The number that the client says next.
    ///
    /// # Errors
    /// When there is none within a minute.
    pub fn answer(&self) -> Result<f64> {
        let line = self.line()?;
        line.parse().with_context(|| format!("the client says {line:?}"))
    }

    /// Waits for the client's word that it is at it.
    ///
    /// # Errors
    /// When it does not say so within a minute.
    pub fn is_going(&self) -> Result<()> {
        self.line().map(drop)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `socat` on the host `at`, which forwards what comes to `port` there.
///
/// # Errors
/// When it cannot be started.
pub fn socat(at: &Net, port: u16, to: &Net, to_port: u16) -> Result<Running> {
    let listen = format!("TCP-LISTEN:{port},fork,reuseaddr,nodelay");
    // Its buffer is 8 KiB without -b, which makes it slower.
    Running::start(
        at.command("socat")
            .args(["-b", "65536"])
            .arg(listen)
            .arg(format!("TCP:{}:{to_port},nodelay", to.address)),
    )
}

/// `ssh -L` on the host `at` and an sshd of its own on the host `to`, which forward what comes to
/// `port`.
///
/// # Errors
/// When no key can be made or a program cannot be started.
pub fn ssh(scratch: &Scratch, at: &Net, port: u16, to: &Net, to_port: u16) -> Result<[Running; 2]> {
    let dir = scratch.dir("ssh")?;
    let key = |name: &str| -> Result<PathBuf> {
        let path = dir.join(name);
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path);
        run(&mut keygen, LIMIT).map(|_| path)
    };
    let (host, user) = (key("host")?, key("user")?);
    const PORT: &str = "2222";
    // Privileges are separated in a folder that a system without the service does not have.
    let words = "mount -t tmpfs none /run && mkdir /run/sshd && exec /usr/sbin/sshd \"$@\"";
    let mut sshd = to.command("unshare");
    sshd.args(["-m", "sh", "-c", words, "sshd", "-D", "-f", "/dev/null", "-p", PORT, "-h"]);
    sshd.arg(&host)
        .arg("-o")
        .arg(format!("AuthorizedKeysFile={}", user.with_extension("pub").display()));
    sshd.args(["-o", "StrictModes=no", "-o", "PidFile=none", "-o", "UsePAM=no"]);
    sshd.args(["-o", "PermitRootLogin=yes"]);
    let sshd = Running::start(&mut sshd)?;
    let forward = format!("{}:{port}:{}:{to_port}", at.address, to.address);
    let mut ssh = at.command("ssh");
    ssh.args(["-N", "-F", "none", "-p", PORT, "-L", &forward, "-i"]).arg(&user);
    ssh.args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
    ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes"]);
    // The server may need a moment.
    ssh.args(["-o", "ConnectionAttempts=9"]).arg(format!("root@{}", to.address));
    Ok([sshd, Running::start(&mut ssh)?])
}
