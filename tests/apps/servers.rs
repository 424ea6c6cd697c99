//! Servers that are moved under the clients of others: real ones, at the home of the job and no
//! part of it, that know nothing of vosrun. A client gives its own verdict.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::Signal;

use super::common::hosts::Hosts;
use super::common::job::{needs, Job, Program, Start};
use super::common::{until, Who};
use super::{move_on, source, LONG};

/// A port of loopback that nobody has now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Starts a server and waits until it listens.
pub fn serve<'h>(hosts: &'h Hosts, start: Start, server: Program, port: u16) -> Result<Job<'h>> {
    let mut job = Job::start_early(hosts, start, server)?;
    // The child is in the network namespace of the host.
    let sockets = format!("/proc/{}/net/tcp", job.child.id());
    let listening = format!(":{port:04X} 00000000:0000 0A ");
    until(LONG, "a listening server", || {
        let over = job.child.try_wait()?.is_some();
        ensure!(!over, "the server ended: {}", job.said());
        Ok(fs::read_to_string(&sockets)?.contains(&listening).then_some(()))
    })?;
    Ok(job)
}

/// A client at the server's home.
pub fn client(hosts: &Hosts, program: Program) -> Result<Job<'_>> {
    Job::start_early(hosts, Start::Native, program)
}

/// Moves the server so many times, each time when the clients have got further by what `done`
/// counts, and waits for that once more. An attached server is adopted in the middle of its work.
pub fn move_under(
    job: &mut Job<'_>,
    clients: &mut [&mut Job<'_>],
    moves: usize,
    done: impl Fn(&Job<'_>, &[&mut Job<'_>]) -> Result<u64>,
) -> Result<()> {
    for turn in 0..=moves {
        let before = done(job, clients)?;
        until(LONG, "further work of the clients", || {
            for client in clients.iter_mut() {
                let over = client.child.try_wait()?.is_some();
                ensure!(!over, "{} ended: {}", client.name, client.said());
            }
            Ok((done(job, clients)? > before).then_some(()))
        })
        .with_context(|| format!("after {turn} moves: {}", job.said()))?;
        if turn == 0 && job.start == Start::Attached {
            job.attach()?;
        }
        if turn < moves {
            move_on(job).with_context(|| format!("move {turn}: {}", job.said()))?;
        }
    }
    Ok(())
}

/// The lines that a client has printed.
pub fn lines_of(client: &Job<'_>) -> u64 {
    client.stdout.bytes().iter().filter(|b| **b == b'\n').count() as u64
}

/// Waits for a good end of a client; gives what it has printed.
pub fn verdict(client: &mut Job<'_>) -> Result<String> {
    let code = client.end(LONG)?;
    ensure!(code == 0, "{}: exit code {code}: {}", client.name, client.said());
    Ok(client.stdout.text())
}

/// Ends a server by a signal that it takes as the order to end.
pub fn shut_down(mut job: Job<'_>, signal: Signal, wanted: i32) -> Result<()> {
    job.signal(signal)?;
    let code = job.end(LONG)?;
    ensure!(code == wanted, "exit code {code}: {}", job.said());
    job.await_nothing_left()
}

fn nginx_config(hosts: &Hosts, dir: &Path, port: u16) -> Result<()> {
    let dirs = ["www", "body", "proxy", "fastcgi", "uwsgi", "scgi"];
    for name in dirs {
        fs::create_dir(dir.join(name))?;
        hosts.give(&dir.join(name))?;
    }
    for (name, size) in [("small", 1000), ("large", 300_000)] {
        let content: String = (0..size / 10).map(|n| format!("{n:09}\n")).collect();
        fs::write(dir.join("www").join(name), content)?;
    }
    let user = if hosts.who == Who::Root { "user nobody nogroup;" } else { "" };
    let temporary: String = dirs[1..]
        .iter()
        .map(|n| format!("{}_temp_path {n};", n.replace("body", "client_body")))
        .collect();
    let text = format!(
        "{user} worker_processes 1; daemon off; pid pid; error_log errors;
        events {{ worker_connections 64; }}
        http {{
            access_log requests; {temporary} sendfile on; keepalive_requests 300;
            server {{ listen 127.0.0.1:{port}; root www; }}
        }}"
    );
    Ok(fs::write(dir.join("conf"), text)?)
}

fn nginx_at<'h>(hosts: &'h Hosts, start: Start, port: u16) -> Result<(Job<'h>, PathBuf)> {
    let (nginx, dir) = (needs("nginx")?, hosts.fresh_dir("nginx")?);
    nginx_config(hosts, &dir, port)?;
    let words = ["-p".into(), format!("{}/", dir.display()), "-e".into(), "errors".into()];
    let server = Program::new(nginx).args(words).args(["-c", "conf"]);
    Ok((serve(hosts, start, server, port)?, dir))
}

/// wrk, which compares what it gets. It ends at ^C, or by itself after a minute.
fn wrk<'h>(hosts: &'h Hosts, words: &[&str], dir: &Path, port: u16) -> Result<Job<'h>> {
    let (wrk, script) = (needs("wrk")?, source("wrk.lua")?);
    let load = Program::new(wrk).args(["-t2", "-d60s", "--timeout", "30s"]).args(words);
    let load = load.args(["-s".into(), script.display().to_string()]);
    let load = load.args([format!("http://127.0.0.1:{port}/")]);
    client(hosts, load.args(["--".into(), format!("{}/www", dir.display())]))
}

fn requests(dir: &Path) -> Result<u64> {
    Ok(fs::metadata(dir.join("requests"))?.len())
}

/// Waits for some lines more in nginx's log.
fn until_served(dir: &Path, load: &mut Job<'_>) -> Result<()> {
    let before = requests(dir)?;
    until(LONG, "requests that are served", || {
        ensure!(load.child.try_wait()?.is_none(), "{}", load.said());
        Ok((requests(dir)? > before + 5000).then_some(()))
    })
}

/// Ends wrk, to which nothing was denied.
fn satisfied(load: &mut Job<'_>) -> Result<()> {
    load.signal(Signal::SIGINT)?;
    let said = verdict(load)?;
    let (_, all) = said.split_once("verdict: ").with_context(|| said.clone())?;
    ensure!(all.starts_with("errors 0 0 0 0 0 wrong 0 "), "{said}");
    Ok(())
}

/// Ends nginx, which has nothing to complain of.
fn end_nginx(job: Job<'_>, dir: &Path) -> Result<()> {
    shut_down(job, Signal::SIGTERM, 0)?;
    let log = fs::read_to_string(dir.join("requests"))?;
    let bad = log.lines().find(|line| !line.contains("HTTP/1.1\" 200 "));
    ensure!(bad.is_none(), "in the log: {bad:?}");
    let errors = fs::read_to_string(dir.join("errors"))?;
    ensure!(errors.is_empty(), "nginx complains: {errors}");
    Ok(())
}

fn under_wrk(hosts: &Hosts, start: Start, words: &[&str], moves: usize) -> Result<()> {
    needs("wrk")?;
    let port = free_port()?;
    let (mut job, dir) = nginx_at(hosts, start, port)?;
    let mut load = wrk(hosts, words, &dir, port)?;
    move_under(&mut job, &mut [&mut load], moves, |_, _| requests(&dir))?;
    satisfied(&mut load)?;
    end_nginx(job, &dir)
}

/// Connections that are kept for hundreds of requests.
pub fn nginx(hosts: &Hosts, start: Start) -> Result<()> {
    under_wrk(hosts, start, &["-c8"], 10)
}

/// A connection for each request.
pub fn nginx_closing(hosts: &Hosts, start: Start) -> Result<()> {
    under_wrk(hosts, start, &["-c24", "-H", "Connection: close"], 5)
}

/// Moved while clients read slowly what it has sent and closed the connection behind.
pub fn nginx_slow(hosts: &Hosts, start: Start) -> Result<()> {
    let (python, file, port) = (needs("python3")?, source("reading.py")?, free_port()?);
    let (mut job, dir) = nginx_at(hosts, start, port)?;
    let large = dir.join("www/large").display().to_string();
    let words = [file.display().to_string(), port.to_string(), large];
    let mut reading = Program::new(python).args(words);
    reading.stdin = Stdio::piped();
    let mut reading = client(hosts, reading)?;
    move_under(&mut job, &mut [&mut reading], 10, |_, c| Ok(lines_of(c[0])))?;
    drop(reading.stdin());
    verdict(&mut reading)?;
    end_nginx(job, &dir)
}

/// Moved while the connections of a killed client are being reset, and when they have been.
pub fn nginx_killed(hosts: &Hosts, start: Start) -> Result<()> {
    needs("wrk")?;
    let port = free_port()?;
    let (mut job, dir) = nginx_at(hosts, start, port)?;
    // The end of a client would end what has come after it.
    let mut loads = Vec::new();
    for turn in 0..8 {
        let words: &[&str] =
            if turn % 2 == 0 { &["-c32"] } else { &["-c32", "-H", "Connection: close"] };
        let mut load = wrk(hosts, words, &dir, port)?;
        until_served(&dir, &mut load)?;
        if start == Start::Attached && turn == 0 {
            job.attach()?;
        }
        load.signal(Signal::SIGKILL)?;
        loads.push(load);
        move_on(&mut job).with_context(|| format!("move {turn}: {}", job.said()))?;
    }
    let mut load = wrk(hosts, &["-c8"], &dir, port)?;
    until_served(&dir, &mut load)?;
    satisfied(&mut load)?;
    end_nginx(job, &dir)
}

/// A client that asks over one connection, and verifies each answer, until its stdin ends.
fn asking<'h>(hosts: &'h Hosts, what: &str, port: u16) -> Result<Job<'h>> {
    let (python, file) = (needs("python3")?, source("asking.py")?);
    let mut program = Program::new(python).args([file.display()]).args([what]).args([port]);
    program.stdin = Stdio::piped();
    client(hosts, program)
}

/// redis-benchmark, again and again until it is told to stop.
const BENCH: &str = "i=0
    while [ ! -e \"$1\" ] && [ $i -lt 100 ]; do
        i=$((i + 1)); $2 -p $3 -c 8 -n 5000 -r 1000 -t set,incr --csv || exit 1
    done";

/// Moved under redis-benchmark and a client that verifies every answer on one connection.
pub fn redis(hosts: &Hosts, start: Start) -> Result<()> {
    let (server, bench, sh) = (needs("redis-server")?, needs("redis-benchmark")?, needs("sh")?);
    let (port, stop) = (free_port()?.to_string(), hosts.fresh_dir("redis")?.join("stop"));
    let words = ["--bind", "127.0.0.1", "--port", &port, "--save", "", "--loglevel", "warning"];
    let mut job = serve(hosts, start, Program::new(server).args(words), port.parse()?)?;
    let mut asking = asking(hosts, "redis", port.parse()?)?;
    let words = ["-c", BENCH, "sh", &stop.display().to_string(), &bench.display().to_string()];
    let mut load = client(hosts, Program::new(sh).args(words).args([port]))?;
    move_under(&mut job, &mut [&mut asking, &mut load], 5, |_, c| Ok(lines_of(c[0])))?;
    drop(asking.stdin());
    fs::write(&stop, "")?;
    verdict(&mut asking)?;
    let said = verdict(&mut load)?;
    let runs = said.matches("\"INCR\",").count();
    ensure!(runs > 0 && said.lines().count() == 3 * runs, "{said}{}", load.stderr.text());
    ensure!(load.stderr.bytes().is_empty(), "{}", load.stderr.text());
    shut_down(job, Signal::SIGTERM, 0)
}

/// Moved under a client that verifies every answer on one connection, and comes anew each time.
pub fn memcached(hosts: &Hosts, start: Start) -> Result<()> {
    let (server, port) = (needs("memcached")?, free_port()?);
    let words = ["-l", "127.0.0.1", "-p", &port.to_string(), "-U", "0", "-t", "2", "-m", "32"];
    let mut server = Program::new(server).args(words);
    if hosts.who == Who::Root {
        server = server.args(["-u", "nobody"]);
    }
    let mut job = serve(hosts, start, server, port)?;
    let mut asking = asking(hosts, "memcached", port)?;
    move_under(&mut job, &mut [&mut asking], 5, |_, c| Ok(lines_of(c[0])))?;
    drop(asking.stdin());
    verdict(&mut asking)?;
    shut_down(job, Signal::SIGTERM, 0)
}

/// The server's reports of intervals in which something was transferred.
fn transfers(job: &Job<'_>) -> u64 {
    let text = job.stdout.text();
    text.lines().filter(|line| line.contains("sec") && !line.contains(" 0.00 Bytes")).count() as u64
}

fn iperf(hosts: &Hosts, start: Start, way: &[&str]) -> Result<()> {
    const BYTES: u64 = 512 << 20;
    const BUFFERS: u64 = 128 << 20;
    let (iperf, port) = (needs("iperf3")?, free_port()?.to_string());
    let words = ["-s", "-1", "-B", "127.0.0.1", "-p", &port, "-i", "0.1", "--forceflush"];
    let mut job = serve(hosts, start, Program::new(&iperf).args(words), port.parse()?)?;
    let bytes = BYTES.to_string();
    let words = ["-c", "127.0.0.1", "-p", &port, "-n", &bytes, "-b", "800M", "--json"];
    let mut load = client(hosts, Program::new(&iperf).args(words).args(way))?;
    move_under(&mut job, &mut [&mut load], 5, |job, _| Ok(transfers(job)))?;
    let said: serde_json::Value = serde_json::from_str(&verdict(&mut load)?)?;
    let bytes = |what: &str| said["end"][what]["bytes"].as_u64();
    ensure!(said["error"].is_null(), "{said}");
    ensure!(bytes("sum_sent") >= Some(BYTES), "{said}");
    // Who receives stops when the client says that it is done, whatever is in buffers then.
    let least = if way.is_empty() { BYTES - BUFFERS } else { BYTES };
    ensure!(bytes("sum_received") >= Some(least), "{said}");
    let code = job.end(LONG)?;
    ensure!(code == 0, "exit code {code}: {}", job.said());
    job.await_nothing_left()
}

/// Moved while it gets a stream.
pub fn iperf3(hosts: &Hosts, start: Start) -> Result<()> {
    iperf(hosts, start, &[])
}

/// Moved while it sends a stream.
pub fn iperf3_reverse(hosts: &Hosts, start: Start) -> Result<()> {
    iperf(hosts, start, &["-R"])
}

/// Moved under a client whose answers are verified by itself.
fn node(hosts: &Hosts, start: Start, what: &str) -> Result<()> {
    let (node, file, port) = (needs("node")?, source("serving.js")?, free_port()?);
    let program = |side: &str| {
        let words = [&file.display().to_string(), what, side, &port.to_string()].map(String::from);
        Program::new(&node).args(words)
    };
    let mut job = serve(hosts, start, program("serve"), port)?;
    let mut visit = program("visit");
    visit.stdin = Stdio::piped();
    let mut visit = client(hosts, visit)?;
    move_under(&mut job, &mut [&mut visit], 5, |_, c| Ok(lines_of(c[0])))?;
    drop(visit.stdin());
    verdict(&mut visit)?;
    shut_down(job, Signal::SIGTERM, 0)
}

/// Many streams of one session, in cleartext.
pub fn node_http2(hosts: &Hosts, start: Start) -> Result<()> {
    node(hosts, start, "http2")
}

/// Many messages of one connection.
pub fn node_websocket(hosts: &Hosts, start: Start) -> Result<()> {
    node(hosts, start, "websocket")
}

/// A name server, moved under a client that asks each question once.
pub fn unbound(hosts: &Hosts, start: Start) -> Result<()> {
    let (server, python) = (needs("unbound")?, needs("python3")?);
    let (file, port, dir) = (source("resolving.py")?, free_port()?, hosts.fresh_dir("unbound")?);
    let names: String = (0..200)
        .map(|n| format!("  local-data: \"n{n}.moved.test. 60 IN A 10.77.0.{n}\"\n"))
        .collect();
    let place = dir.display();
    let config = format!(
        "server:\n  interface: 127.0.0.1@{port}\n  do-ip6: no\n  num-threads: 2\n  chroot: \"\"\n  \
         username: \"\"\n  directory: \"{place}\"\n  pidfile: \"\"\n  use-syslog: no\n  \
         do-daemonize: no\n  module-config: \"iterator\"\n  local-zone: \"moved.test.\" static\n\
         {names}remote-control:\n  control-enable: no\n"
    );
    let path = dir.join("config");
    fs::write(&path, config)?;
    let server = Program::new(server).args(["-d".into(), "-c".into(), path.display().to_string()]);
    let mut job = serve(hosts, start, server, port)?;
    let mut asking = Program::new(python).args([file.display()]).args([port]);
    asking.stdin = Stdio::piped();
    let mut asking = client(hosts, asking)?;
    move_under(&mut job, &mut [&mut asking], 5, |_, c| Ok(lines_of(c[0])))?;
    drop(asking.stdin());
    verdict(&mut asking)?;
    shut_down(job, Signal::SIGTERM, 0)
}
