//! What the target does not have, and what cannot move: the job stays where it is.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use crate::common::gate::Gate;
use crate::common::hosts::Hosts;
use crate::common::procs;
use crate::common::{self, Who, SOON};
use crate::scene::{expect, two_hosts, Scene, ABORTED, REFUSED, TEMPORARY};

pub fn no_such_node(who: Who) -> Result<()> {
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "ledger", None)?;
    let done = scene.ended(scene.migrate("nowhere")?)?;
    expect(&done, &[2, REFUSED, TEMPORARY])?;
    scene.await_running()?;
    scene.finish()
}

pub fn node_down(who: Who) -> Result<()> {
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "ledger", None)?;
    hosts.kill_node(1)?;
    let done = scene.ended(scene.migrate("b")?)?;
    expect(&done, &[TEMPORARY])?;
    scene.await_running()?;
    scene.finish()
}

/// An object that cannot move is named, by `check` and by `migrate`, before anything stops.
pub fn unmovable(who: Who) -> Result<()> {
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "unmovable", None)?;
    let check = hosts.run(0, &["check", &scene.job.name, "--to", "b"])?;
    expect(&check, &[REFUSED])?;
    ensure!(check.stdout.contains("fd "), "check does not name the fd: {}", check.stdout);
    let done = scene.ended(scene.migrate("b")?)?;
    expect(&done, &[REFUSED])?;
    let document: Value = serde_json::from_str(&done.stdout)?;
    let finding = &document["findings"][0];
    let code = finding["code"].as_str().with_context(|| format!("no finding in {document}"))?;
    ensure!(finding["object"].as_str().is_some_and(|o| o.contains("fd ")), "{document}");
    hosts.run(0, &["explain", code])?.good("explain")?;
    scene.await_running()?;
    scene.finish()
}

/// The target's kernel lets its node make no namespaces, and it runs as another user than the job:
/// `check` and `migrate` say so, the job is not touched.
pub fn no_namespaces(who: Who) -> Result<()> {
    let without = "echo 0 > /proc/sys/user/max_user_namespaces; exec \
                   setpriv --ambient-caps=-all --inh-caps=-all --bounding-set=-all \"$@\"";
    let (user, group) = match who {
        Who::Root => ("--map-user=1234", "--map-group=1234"),
        Who::User => ("--map-user=0", "--map-group=0"),
    };
    let hosts = two_hosts(who, None)?;
    hosts.kill_node(1)?;
    let other = ["unshare", "-U", user, group, "--keep-caps", "sh", "-c", without, "sh"];
    hosts.start_node_via(1, &other, &|_, _| {})?;
    let scene = Scene::start(&hosts, "ledger", None)?;
    let check = hosts.run(0, &["check", &scene.job.name, "--to", "b"])?;
    expect(&check, &[REFUSED])?;
    ensure!(check.stdout.contains("VOS-USERNS"), "check does not tell: {}", check.stdout);
    let done = scene.ended(scene.migrate("b")?)?;
    expect(&done, &[REFUSED])?;
    ensure!(done.stdout.contains("VOS-USERNS"), "migrate does not tell: {}", done.stdout);
    scene.await_running()?;
    scene.finish()
}

/// Another program opens a leased file while the job is frozen: the move is given up, and the job
/// is told as if nothing had been tried.
pub fn lease_broken(who: Who) -> Result<()> {
    let mut gate = Gate::new("image-sent")?;
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "lease_broken", Some(&gate))?;
    let moving = scene.migrate("b")?;
    gate.reached()?;
    let leased = scene.job.dir.join("status.leased");
    let opened = fs::File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&leased);
    let kind = opened.err().map(|e| e.kind());
    ensure!(kind == Some(std::io::ErrorKind::WouldBlock), "{}: {kind:?}", leased.display());
    gate.release()?;
    let done = scene.ended(moving)?;
    expect(&done, &[ABORTED])?;
    ensure!(done.stdout.contains("VOS-LEASE-BREAK"), "migrate does not tell: {}", done.stdout);
    scene.await_running()?;
    scene.finish()
}

fn still_at_home(guest: &str, hosts: &Hosts, limit: impl FnOnce() -> Result<()>) -> Result<()> {
    let scene = Scene::start(hosts, guest, None)?;
    limit()?;
    let done = scene.ended(scene.migrate("b")?)?;
    expect(&done, &[REFUSED, ABORTED, TEMPORARY])?;
    scene.await_running()?;
    scene.await_state(0, "RUNNING")?;
    scene.finish()
}

/// The target's files may not grow.
pub fn disk_full_limit() -> Result<()> {
    let hosts = two_hosts(Who::User, None)?;
    still_at_home("ledger", &hosts, || hosts.limit_node(1, "--fsize=0:0"))
}

/// The target's state folder is on a file system without a free block.
pub fn disk_full() -> Result<()> {
    ensure!(common::is_root(), "SKIP needs root");
    let hosts = Hosts::start_prepared(Who::Root, 2, |hosts| {
        let dir = hosts.hosts[1].state_dir.display().to_string();
        let mut mount = hosts.command(1, Path::new("/bin/mount"));
        mount.args(["-t", "tmpfs", "-o", "size=256k,mode=755", "vosrun-test", &dir]);
        procs::run(&mut mount, SOON)?.good("mount").map(drop)
    })?;
    still_at_home("ledger", &hosts, || {
        let file = hosts.hosts[1].state_dir.join("filler").display().to_string();
        let mut fill = hosts.command(1, Path::new("/bin/sh"));
        fill.args(["-c", "cat /dev/zero > \"$0\" 2>/dev/null; exit 0", &file]);
        procs::run(&mut fill, SOON)?.good("fill").map(drop)
    })
}

/// The target may not have the memory that the job needs.
pub fn no_memory() -> Result<()> {
    let hosts = two_hosts(Who::User, None)?;
    still_at_home("mem_big", &hosts, || {
        let pid = hosts.node_pid(1).context("no node")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let size = status.lines().find_map(|l| l.strip_prefix("VmSize:")).context("VmSize")?;
        let kib: u64 = size.trim().trim_end_matches(" kB").parse()?;
        let bytes = (kib << 10) + (40 << 20);
        hosts.limit_node(1, &format!("--as={bytes}:{bytes}"))
    })
}
