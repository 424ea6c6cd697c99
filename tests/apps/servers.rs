//! Servers that are moved under the clients of others: real ones, at the home of the job and no
//! part of it, that know nothing of vosrun. A client gives its own verdict.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
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
    let listening = format!(": 0100007F:{port:04X} 00000000:0000 0A ");
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
    let moves = if job.start == Start::Native { 0 } else { moves };
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

/// Ten moves under the connections of wrk, which compares what it gets. It ends at ^C, or by itself
/// after a minute.
pub fn nginx(hosts: &Hosts, start: Start) -> Result<()> {
    let (nginx, wrk, script) = (needs("nginx")?, needs("wrk")?, source("wrk.lua")?);
    let (port, dir) = (free_port()?, hosts.fresh_dir("nginx")?);
    nginx_config(hosts, &dir, port)?;
    let path = dir.display();
    let words = ["-p".into(), format!("{path}/"), "-e".into(), "errors".into()];
    let server = Program::new(nginx).args(words).args(["-c", "conf"]);
    let mut job = serve(hosts, start, server, port)?;
    let load = Program::new(wrk).args(["-t2", "-c8", "-d60s", "--timeout", "30s", "-s"]);
    let load = load.args([script.display()]).args([format!("http://127.0.0.1:{port}/")]);
    let load = load.args(["--".into(), format!("{path}/www")]);
    let mut load = client(hosts, load)?;
    let served = |_: &Job<'_>, _: &[&mut Job<'_>]| Ok(fs::metadata(dir.join("requests"))?.len());
    move_under(&mut job, &mut [&mut load], 10, served)?;
    load.signal(Signal::SIGINT)?;
    let said = verdict(&mut load)?;
    let (_, all) = said.split_once("verdict: ").with_context(|| said.clone())?;
    ensure!(all.starts_with("errors 0 0 0 0 0 wrong 0 "), "{said}");
    shut_down(job, Signal::SIGTERM, 0)?;
    let log = fs::read_to_string(dir.join("requests"))?;
    let bad = log.lines().find(|line| !line.contains("HTTP/1.1\" 200 "));
    ensure!(bad.is_none(), "in the log: {bad:?}");
    let errors = fs::read_to_string(dir.join("errors"))?;
    ensure!(errors.is_empty(), "nginx complains: {errors}");
    Ok(())
}

/// A client that asks over one connection, and verifies each answer, until its stdin ends.
fn asking<'h>(hosts: &'h Hosts, what: &str, port: u16) -> Result<Job<'h>> {
    let (python, file) = (needs("python3")?, source("asking.py")?);
    let mut program = Program::new(python).args([file.display()]).args([what]).args([port]);
    program.stdin = Stdio::piped();
    client(hosts, program)
}

/// Moved under redis-benchmark and a client that verifies every answer on one connection.
pub fn redis(hosts: &Hosts, start: Start) -> Result<()> {
    let (server, bench) = (needs("redis-server")?, needs("redis-benchmark")?);
    let port = free_port()?;
    let words = ["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""];
    let server = Program::new(server).args(words).args(["--loglevel", "warning"]);
    let mut job = serve(hosts, start, server, port)?;
    let mut asking = asking(hosts, "redis", port)?;
    let words = ["-p", &port.to_string(), "-c", "8", "-n", "50000", "-r", "1000", "-t", "incr"];
    let mut load = client(hosts, Program::new(bench).args(words).args(["--csv"]))?;
    move_under(&mut job, &mut [&mut asking, &mut load], 5, |_, c| Ok(lines_of(c[0])))?;
    drop(asking.stdin());
    verdict(&mut asking)?;
    let said = verdict(&mut load)?;
    ensure!(said.lines().count() == 2, "{said}");
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
    const BYTES: u64 = 768 << 20;
    const BUFFERS: u64 = 128 << 20;
    let (iperf, port) = (needs("iperf3")?, free_port()?.to_string());
    let words = ["-s", "-1", "-B", "127.0.0.1", "-p", &port, "-i", "0.1", "--forceflush"];
    let mut job = serve(hosts, start, Program::new(&iperf).args(words), port.parse()?)?;
    let bytes = BYTES.to_string();
    let words = ["-c", "127.0.0.1", "-p", &port, "-n", &bytes, "-b", "1G", "--json"];
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
