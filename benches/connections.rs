//! What a TCP connection costs that is relayed: `cargo bench --bench connections`.
//!
//! ```text
//!   host c                 host a: the job's home             host b
//!   client ═══ leg 1 ═══ server, alone or under vosrun
//!   client ═══ leg 1 ═══ home agent │ ssh │ socat ═══ leg 2 ═══ server
//!                        client under vosrun      ═══ leg 2 ═══ server, joined
//!                                                          client and server, joined
//! ```
//! Hosts are network namespaces, joined by veth pairs. Each way has a server of its own and a
//! connection that stays; all ways are measured in turns, for one size of message after the other.
//!
//! * Before a move the client's connection with a server under vosrun is compared with one to the same
//!   program beside it: leg 1.
//! * What is joined is compared with a native connection between the same two hosts, or of two programs on
//!   the same host.
//! * What is forwarded is compared with two native connections: leg 1, and leg 2, from `a` to a server
//!   on `b`. The native **round trip** is the sum of both, the native **bandwidth** that of the slower
//!   leg, which is all that one connection by way of `a` could get if `a` cost nothing.
//!
//! See benches/README.md.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use common::ends::{socat, ssh, Client, Running};
use common::net::Net;
use common::nodes::{tracer, Job, Nodes};
use common::stats::{median, run_bench, spread, Wanted};
use common::{retry, Options, Scratch};

/// No single command takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Bytes of a message.
const SIZES: [u32; 5] = [128, 512, 2 << 10, 8 << 10, 32 << 10];

/// One measurement takes so long, ms.
const ROUND_TRIPS_MS: u32 = 60;
const FLOW_MS: u32 = 120;

/// Connections of the rows that tell the cost of one.
const MANY: u32 = 1000;

/// CPU time of idle relays is taken over so long.
const IDLE: Duration = Duration::from_secs(2);

/// The ways that bytes can take; the port of each at the host where the client finds it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// From `c` to `a`, and from `a` to `b`.
    Leg1 = 7001,
    Leg2 = 7002,
    Before = 7003,
    Forwarded = 7004,
    Ssh = 7005,
    Socat = 7006,
    /// Both ends are jobs, on `a` and on `b`.
    Joined = 7007,
    /// Two programs on `b`, and two jobs there.
    Loopback = 7008,
    Together = 7009,
}

const WAYS: [Way; 9] = [
    Way::Leg1,
    Way::Leg2,
    Way::Before,
    Way::Forwarded,
    Way::Ssh,
    Way::Socat,
    Way::Joined,
    Way::Loopback,
    Way::Together,
];

impl Way {
    fn port(self) -> u16 {
        self as u16
    }
}

/// What is measured: costs, less is better.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// µs.
    RoundTrip,
    /// ns per byte.
    Bandwidth,
}

/// A table of one line per size and way.
struct Table {
    name: &'static str,
    what: What,
    /// Of each link.
    rate: Option<&'static str>,
    before: Wanted,
    /// Of ends on two nodes, and on one.
    joined: Wanted,
    together: Wanted,
    /// Native over forwarded; for 32 KiB only when `last`.
    forwarded: Wanted,
    last: bool,
}

const TABLES: [Table; 3] = [
    Table {
        name: "round trip",
        what: What::RoundTrip,
        rate: None,
        before: Wanted::AtLeast(0.99),
        joined: Wanted::AtLeast(0.97),
        together: Wanted::AtLeast(1.0),
        // 1.3 times as long.
        forwarded: Wanted::AtLeast(0.77),
        last: false,
    },
    Table {
        name: "bandwidth",
        what: What::Bandwidth,
        rate: None,
        before: Wanted::AtLeast(0.99),
        joined: Wanted::AtLeast(0.97),
        together: Wanted::AtLeast(1.0),
        forwarded: Wanted::AtLeast(0.75),
        last: true,
    },
    Table {
        name: "1 Gbit/s",
        what: What::Bandwidth,
        rate: Some("1gbit"),
        before: Wanted::AtLeast(0.99),
        joined: Wanted::AtLeast(0.97),
        together: Wanted::AtLeast(1.0),
        forwarded: Wanted::AtLeast(0.95),
        last: true,
    },
];

fn main() -> ExitCode {
    run_bench(bench)
}

/// The hosts, their nodes, and the program of both ends.
struct Scene {
    // Dropped in this order.
    nodes: Nodes,
    a: Net,
    b: Net,
    c: Net,
    program: PathBuf,
    scratch: Scratch,
}

impl Scene {
    fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let program = scratch.guest("connection", &[])?;
        let (a, b, c) = (Net::new("a", 1)?, Net::new("b", 2)?, Net::new("c", 3)?);
        c.join(&a)?;
        a.join(&b)?;
        let nodes = Nodes::start_on(&scratch, LIMIT, [&a, &b])?;
        Ok(Self { nodes, a, b, c, program, scratch })
    }

    fn job(&self, port: u16) -> Result<Job> {
        let port = port.to_string();
        Job::start(&self.nodes, &format!("server{port}"), &self.program, &["serve", &port])
    }

    /// A client on `c` of what is on `a`.
    fn client(&self, port: u16) -> Result<Client> {
        Client::connect(&self.c, &self.program, &self.a.address, port)
    }

    /// The nodes may not know each other yet: the first move is tried again.
    fn first_move(&self, job: &Job) -> Result<Value> {
        retry(Duration::from_secs(10), || self.nodes.migrate(&job.name, 0))
    }

    fn limit(&self, rate: &str) -> Result<()> {
        self.c.limit(&self.a, rate)?;
        self.a.limit(&self.b, rate)
    }
}

/// Measures so often and prints.
type Row = fn(&Scene, usize) -> Result<()>;

fn bench(failures: &mut Vec<(String, anyhow::Error)>) -> Result<()> {
    let options = Options::from_args()?;
    let scene = Scene::new()?;
    if let Err(e) = tables(&scene, &options) {
        failures.push(("the tables of round trips and bandwidth".into(), e));
    }
    let rows: [(&str, Row); 2] = [("pause of a client", pause), ("1000 connections", many)];
    for (name, row) in rows.into_iter().filter(|(name, _)| options.chosen(name)) {
        if let Err(e) = row(&scene, options.repeats.unwrap_or(12)) {
            failures.push((name.into(), e));
        }
    }
    Ok(())
}

/// All ways, each with its server, connected.
struct Ways {
    clients: BTreeMap<Way, Client>,
    _jobs: Vec<Job>,
    _others: Vec<Running>,
}

impl Ways {
    fn new(scene: &Scene) -> Result<Self> {
        let Scene { a, b, program, scratch, .. } = scene;
        let server = |at: &Net, way: Way| {
            let mut command = at.command(&program.to_string_lossy());
            Running::start(command.args(["serve", &way.port().to_string()]))
        };
        let mut others = vec![server(a, Way::Leg1)?, server(b, Way::Leg2)?];
        others.push(server(b, Way::Loopback)?);
        others.extend(ssh(scratch, a, Way::Ssh.port(), b, Way::Leg2.port())?);
        others.push(socat(a, Way::Socat.port(), b, Way::Leg2.port())?);
        let of_job = [Way::Before, Way::Forwarded, Way::Joined, Way::Together];
        let jobs = of_job.map(|way| scene.job(way.port()));
        let jobs = jobs.into_iter().collect::<Result<Vec<Job>>>()?;
        let mut clients = BTreeMap::new();
        for way in WAYS {
            let client = match way {
                Way::Leg2 => Client::connect(a, program, &b.address, way.port())?,
                Way::Loopback => Client::connect(b, program, &b.address, way.port())?,
                Way::Joined | Way::Together => {
                    let name = format!("client{}", way.port());
                    Client::job(&scene.nodes, &name, program, &a.address, way.port())?
                }
                _ => scene.client(way.port())?,
            };
            clients.insert(way, client);
        }
        for job in &jobs[1..] {
            scene.first_move(job)?;
        }
        retry(Duration::from_secs(10), || {
            scene.nodes.migrate(&format!("client{}", Way::Together.port()), 0)
        })?;
        let mut ways = Self { clients, _jobs: jobs, _others: others };
        for way in [Way::Joined, Way::Together] {
            let name = format!("server{}", way.port());
            retry(Duration::from_secs(20), || {
                ways.measure(way, What::RoundTrip, SIZES[0])?;
                let bindings = scene.nodes.bindings(&name, 1)?;
                ensure!(bindings == ["joined"], "{name} is not joined but {bindings:?}");
                Ok(())
            })?;
        }
        Ok(ways)
    }

    /// The cost of one way.
    fn measure(&mut self, way: Way, what: What, size: u32) -> Result<f64> {
        let client = self.clients.get_mut(&way).context("no such way")?;
        match what {
            What::RoundTrip => client.ask(&format!("rtt {size} {ROUND_TRIPS_MS}")),
            What::Bandwidth => client.ask(&format!("flow {size} {FLOW_MS}")).map(|rate| 1e3 / rate),
        }
    }
}

fn tables(scene: &Scene, options: &Options) -> Result<()> {
    let name = |table: &Table, size: u32| match size {
        size if size < 1 << 10 => format!("{}, {size} B", table.name),
        size => format!("{}, {} KiB", table.name, size >> 10),
    };
    let is_chosen = |table: &Table| SIZES.iter().any(|s| options.chosen(&name(table, *s)));
    let mut ways = None;
    for table in TABLES.iter().filter(|table| is_chosen(table)) {
        let ways = match &mut ways {
            Some(ways) => ways,
            none => none.insert(Ways::new(scene)?),
        };
        if let Some(rate) = table.rate {
            scene.limit(rate)?;
        }
        println!(
            "\n{:<22}{:<12}{:>4}{:>12}  {:<22}{:<24}wanted",
            match table.rate {
                Some(_) => "links of 1 Gbit/s",
                None => "links without limit",
            },
            "",
            "n",
            match table.what {
                What::RoundTrip => "µs",
                What::Bandwidth => "MB/s",
            },
            "speed : native",
            "forwarded : this"
        );
        for size in SIZES {
            let name = name(table, size);
            if options.chosen(&name) {
                size_rows(ways, table, &name, size, options.repeats.unwrap_or(9))?;
            }
        }
    }
    match TABLES.iter().any(|table| table.rate.is_some() && is_chosen(table)) {
        true => scene.limit("100gbit"),
        false => Ok(()),
    }
}

/// The lines of one size: all ways in turns, there and back.
fn size_rows(ways: &mut Ways, table: &Table, name: &str, size: u32, repeats: usize) -> Result<()> {
    let mut costs: BTreeMap<Way, Vec<f64>> = BTreeMap::new();
    for way in WAYS {
        ways.measure(way, table.what, size)?;
    }
    for round in 0..repeats.max(1) {
        let mut order = WAYS;
        if round % 2 == 1 {
            order.reverse();
        }
        for way in order {
            costs.entry(way).or_default().push(ways.measure(way, table.what, size)?);
        }
    }
    let forwarded = costs[&Way::Forwarded].clone();
    let both = |(a, b): (&f64, &f64)| match table.what {
        What::RoundTrip => a + b,
        What::Bandwidth => a.max(*b),
    };
    let native: Vec<f64> = costs[&Way::Leg1].iter().zip(&costs[&Way::Leg2]).map(both).collect();
    let judged = if table.last && size != SIZES[4] { Wanted::Nothing } else { table.forwarded };
    let ahead = Wanted::AtLeast(1.0);
    line(table, name, "leg 1 alone", &costs[&Way::Leg1], None, None);
    line(table, name, "both legs", &native, None, None);
    let leg1 = Some((&costs[&Way::Leg1], table.before));
    line(table, name, "before", &costs[&Way::Before], leg1, None);
    line(table, name, "leg 2 alone", &costs[&Way::Leg2], None, None);
    line(
        table,
        name,
        "joined",
        &costs[&Way::Joined],
        Some((&costs[&Way::Leg2], table.joined)),
        None,
    );
    line(table, name, "loopback", &costs[&Way::Loopback], None, None);
    let loopback = Some((&costs[&Way::Loopback], table.together));
    line(table, name, "one node", &costs[&Way::Together], loopback, None);
    line(table, name, "forwarded", &forwarded, Some((&native, judged)), None);
    for (way, word) in [(Way::Ssh, "ssh -L"), (Way::Socat, "socat")] {
        let against = Some((&forwarded, ahead));
        line(table, name, word, &costs[&way], Some((&native, Wanted::Nothing)), against);
    }
    Ok(())
}

/// One line: costs, against native ones, and those of the forwarded connection against them.
fn line(
    table: &Table,
    name: &str,
    way: &str,
    costs: &[f64],
    native: Option<(&Vec<f64>, Wanted)>,
    forwarded: Option<(&Vec<f64>, Wanted)>,
) {
    let speeds = |fast: &[f64], slow: &[f64]| -> Vec<f64> {
        fast.iter().zip(slow).map(|(fast, slow)| fast / slow).collect()
    };
    let native = native.map(|(native, wanted)| (speeds(native, costs), wanted));
    let forwarded = forwarded.map(|(forwarded, wanted)| (speeds(costs, forwarded), wanted));
    let judged = forwarded.as_ref().or(native.as_ref());
    let verdict = judged.map(|(ratios, wanted)| wanted.verdict(median(ratios)));
    let text = |ratios: Option<&(Vec<f64>, Wanted)>| {
        ratios.map(|(ratios, _)| spread(ratios, 3)).unwrap_or_default()
    };
    let value = match table.what {
        What::RoundTrip => median(costs),
        What::Bandwidth => 1e3 / median(costs),
    };
    println!(
        "{name:<22}{way:<12}{:>4}{value:>12.1}  {:<22}{:<24}{}",
        costs.len(),
        text(native.as_ref()),
        text(forwarded.as_ref()),
        verdict.unwrap_or_default()
    );
}

/// The longest gap between two answers to a client that asks every millisecond, while the server
/// goes to and fro.
fn pause(scene: &Scene, moves: usize) -> Result<()> {
    const PORT: u16 = 7011;
    let job = scene.job(PORT)?;
    let mut client = scene.client(PORT)?;
    scene.first_move(&job)?;
    scene.nodes.migrate(&job.name, 1)?;
    let (mut pauses, mut gaps, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..moves.max(1).next_multiple_of(2) {
        let mut watched = |what: &mut dyn FnMut() -> Result<()>| {
            client.tell("gaps")?;
            client.is_going()?;
            thread::sleep(Duration::from_millis(30));
            what()?;
            thread::sleep(Duration::from_millis(30));
            client.ask("enough")
        };
        let mut pause = None;
        gaps.push(watched(&mut || {
            pause = scene.nodes.migrate(&job.name, turn % 2)?["pause_ms"].as_f64();
            Ok(())
        })?);
        pauses.push(pause.context("migrate --json gave no pause_ms")?);
        quiet.push(watched(&mut || Ok(()))?);
    }
    job.end()?;
    println!(
        "\n{:<22}{:>4}{:>12}{:>12}{:>16}  {:<24}wanted",
        "pause of a client", "n", "pause ms", "gap ms", "no move, ms", "gap : pause"
    );
    let ratios: Vec<f64> = gaps.iter().zip(&pauses).map(|(gap, pause)| gap / pause).collect();
    println!(
        "{:<22}{:>4}{:>12.2}{:>12.2}{:>16.2}  {:<24}{}",
        "request every ms",
        ratios.len(),
        median(&pauses),
        median(&gaps),
        median(&quiet),
        spread(&ratios, 2),
        Wanted::AtMost(1.5).verdict(median(&ratios))
    );
    Ok(())
}

/// What many established connections cost: in the pause of a move, in memory, and in CPU time when
/// they are idle. The same job first with one, then with many more.
fn many(scene: &Scene, moves: usize) -> Result<()> {
    const PORT: u16 = 7012;
    let moves = moves.max(2).next_multiple_of(2);
    let few = carry(scene, PORT, 0, moves)?;
    let all = carry(scene, PORT + 1, MANY, moves)?;
    println!(
        "\n{:<40}{:>4}{:>12}{:>14}  {:<24}wanted",
        format!("{MANY} connections"),
        "n",
        "without",
        "with",
        "per connection"
    );
    for (direction, name) in
        ["pause of a move away, ms", "pause of a move home, ms"].iter().enumerate()
    {
        let differences = all.pauses[direction].iter().zip(&few.pauses[direction]);
        let each: Vec<f64> = differences.map(|(a, f)| (a - f) / f64::from(MANY)).collect();
        println!(
            "{name:<40}{:>4}{:>12.2}{:>14.2}  {:<24}{}",
            each.len(),
            median(&few.pauses[direction]),
            median(&all.pauses[direction]),
            spread(&each, 3),
            Wanted::AtMost(1.0).verdict(median(&each))
        );
    }
    for (side, name) in ["home agent", "supervisor at the target"].iter().enumerate() {
        let (before, after) = (few.kib[side], all.kib[side]);
        let each = (after - before) / f64::from(MANY);
        println!(
            "{:<40}{:>4}{before:>12.0}{after:>14.0}  {each:<24.2}{}",
            format!("private memory, KiB: {name}"),
            1,
            Wanted::AtMost(4.0).verdict(each)
        );
        let (before, after) = (few.idle_us[side], all.idle_us[side]);
        let verdict = Wanted::AtMost(1e3).verdict(after);
        println!(
            "{:<40}{:>4}{before:>12.0}{after:>14.0}  {:<24}{verdict}",
            format!("CPU time, idle, µs/s: {name}"),
            1,
            ""
        );
    }
    Ok(())
}

/// What was seen of a job with so many connections.
#[derive(Default)]
struct Carried {
    /// Of moves from home and back, ms.
    pauses: [Vec<f64>; 2],
    /// Private memory of the home agent and the supervisor at the target, KiB.
    kib: [f64; 2],
    /// CPU time of both while nothing happens, µs per second.
    idle_us: [f64; 2],
}

fn carry(scene: &Scene, port: u16, connections: u32, moves: usize) -> Result<Carried> {
    let job = scene.job(port)?;
    let mut client = scene.client(port)?;
    client.ask(&format!("open {connections}"))?;
    let mut carried = Carried::default();
    let first = scene.first_move(&job)?;
    let pid = first["processes"][0]["host_pid"].as_i64().context("no host_pid")?;
    let pids = [job.pid()?, tracer(i32::try_from(pid)?)?];
    // Every relay was used once, as one in earnest was.
    client.ask("rtt 128 20")?;
    thread::sleep(Duration::from_millis(300));
    carried.kib = [private_kib(pids[0])?, private_kib(pids[1])?];
    let (begin, before) = (Instant::now(), [cpu_us(pids[0])?, cpu_us(pids[1])?]);
    thread::sleep(IDLE);
    for side in [0, 1] {
        carried.idle_us[side] =
            (cpu_us(pids[side])? - before[side]) / begin.elapsed().as_secs_f64();
    }
    scene.nodes.migrate(&job.name, 1)?;
    for turn in 0..moves {
        let report = scene.nodes.migrate(&job.name, turn % 2)?;
        let pause = report["pause_ms"].as_f64().context("migrate --json gave no pause_ms")?;
        carried.pauses[turn % 2].push(pause);
    }
    client.ask("rtt 128 20")?;
    job.end()?;
    Ok(carried)
}

/// Private_Clean + Private_Dirty of proc_pid_smaps(5), KiB.
fn private_kib(pid: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let sizes = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(sizes.sum())
}

/// CPU time that the threads of a process have had, µs (`schedstat` of the kernel's scheduler
/// statistics).
fn cpu_us(pid: i32) -> Result<f64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    let times = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    Ok(times.sum::<f64>() / 1e3)
}
