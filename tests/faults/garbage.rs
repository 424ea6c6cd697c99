//! A member of the community that does not keep to the protocol.

use std::fs;
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use vosrun::ids::{Epoch, JobId, MoveId};
use vosrun::migrate::heritage::{Bequest, Heirloom};
use vosrun::migrate::image::{Clocks, Ids, JobInfo};
use vosrun::migrate::message::{Msg, PROTOCOL};
use vosrun::migrate::preflight;
use vosrun::migrate::resource::creds::User;
use vosrun::migrate::resource::fd::BulkId;
use vosrun::migrate::shares::Shares;
use vosrun::migrate::skeleton::Plan;
use vosrun::migrate::transport::{Link, Service};
use vosrun::migrate::tree::Member;
use vosrun::node::peers;
use vosrun::state::StateDir;
use vosrun::tracer::memory::VmFlags;

use crate::common::hosts::Hosts;
use crate::common::{procs, until, Who, SOON};
use crate::scene::{two_hosts, Scene};

/// What a source says: messages with their payloads.
type Said = Vec<(Msg, Vec<u8>)>;

/// What a member sends that does not keep to the protocol, after a good greeting.
fn garbage_messages() -> Vec<(&'static str, Said)> {
    let image = |last| Msg::Image { last };
    let noise: Vec<u8> =
        (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let ids = |pid| Ids { pid, ppid: 1, pgid: pid, sid: pid };
    let plan = |pid, clock| Plan {
        members: vec![Member { ids: ids(pid), ended: None, shares: Shares::default() }],
        nodename: "x".into(),
        domainname: String::new(),
        clocks: Clocks { monotonic: clock, boottime: clock },
        terminals: Vec::new(),
        ptys: false,
        user: User::own(),
        bequests: Vec::new(),
        programs: Vec::new(),
    };
    let id = BulkId { dev: 1, ino: 2 };
    let heirs =
        |member, start| Msg::Heirs { member, ranges: vec![(start, start + 4096)], last: true };
    let heirloom =
        |start| Heirloom { start, end: start + 8192, flags: VmFlags::empty(), file: None };
    let handing = |mappings| {
        let bequests = vec![Bequest { member: 0, mappings }];
        (Msg::Prepare(Plan { bequests, ..plan(300, 1 << 40) }), Vec::new())
    };
    vec![
        ("an image of noise", vec![(image(true), noise.clone())]),
        (
            "an image of noise, framed",
            vec![
                (Msg::Prepare(plan(300, 1 << 40)), Vec::new()),
                (image(false), noise.clone()),
                (image(true), noise.clone()),
            ],
        ),
        (
            // A tree that has grown gets another frame.
            "an image of noise after a second frame",
            vec![
                (Msg::Prepare(plan(300, 1 << 40)), Vec::new()),
                (Msg::Prepare(plan(301, 1 << 40)), Vec::new()),
                (image(true), noise.clone()),
            ],
        ),
        ("an absurd pid", vec![(Msg::Prepare(plan(-5, 1 << 40)), Vec::new())]),
        ("an absurd clock", vec![(Msg::Prepare(plan(300, i128::MIN)), Vec::new())]),
        (
            "pages of nothing",
            vec![(Msg::Pages { process: 0, ranges: vec![(u64::MAX, 0)] }, noise.clone())],
        ),
        ("pages of no frame", vec![(heirs(0, 0x1000), noise.clone())]),
        (
            "pages of a frame that wants none",
            vec![handing(Vec::new()), (heirs(0, 0x1000), noise.clone())],
        ),
        (
            "pages at another place than was said",
            vec![handing(vec![heirloom(0x1000_0000)]), (heirs(0, 0x7000), noise.clone())],
        ),
        (
            "too few pages",
            vec![handing(vec![heirloom(0x1000_0000)]), (heirs(0, 0x1000_0000), Vec::new())],
        ),
        (
            "pages of another process",
            vec![handing(vec![heirloom(0x1000_0000)]), (heirs(1, 0x1000_0000), noise.clone())],
        ),
        ("a mapping at no address", vec![handing(vec![heirloom(1 << 60)])]),
        (
            "an image while a frame waits",
            vec![handing(vec![heirloom(0x1000_0000)]), (image(true), noise.clone())],
        ),
        ("content of no file", vec![(Msg::Chunk { index: 9, last: true }, noise.clone())]),
        ("content of nothing", vec![(Msg::Bulk { id, offset: u64::MAX }, noise.clone())]),
        ("the end before the image", vec![(Msg::PagesEnd, Vec::new())]),
        (
            "a file's name of noise",
            vec![(Msg::File { index: 0, hash: [0; 32], mode: 0, size: 1 }, vec![0xff; 4])],
        ),
        (
            "another content than was promised",
            vec![
                (Msg::File { index: 0, hash: [0; 32], mode: 0, size: 1 }, noise.clone()),
                (Msg::Chunk { index: 0, last: true }, noise.clone()),
            ],
        ),
        ("a commit out of order", vec![(Msg::Commit, Vec::new())]),
        ("a greeting of noise", vec![(Msg::Hello(PROTOCOL, noise), Vec::new())]),
    ]
}

/// Sends a good greeting to b as the node a, then `rest`; gives what b said last.
fn talk(hosts: &Hosts, rest: &[(Msg, Vec<u8>)]) -> Result<Option<Msg>> {
    let state = StateDir::open(&hosts.hosts[0].state_dir)?;
    let peer = peers::find(&state, "b")?.context("a does not know b")?;
    let tls = vosrun::node::tls(&state)?;
    let of = preflight::Move {
        id: MoveId::random()?,
        job: JobInfo {
            id: JobId::random()?,
            name: "garbage".into(),
            command: Vec::new(),
            home: "a".into(),
            started_ms: 1,
            attached: false,
            filtered: false,
        },
        epoch: Epoch(1),
        dry: false,
        translate: false,
        source: "a",
        home: (tls.id(), "a".into()),
        history: Vec::new(),
    };
    let hello = preflight::hello(&[std::process::id() as i32], of, preflight::Open::default())?;
    let mut link = Link::connect(&peer.addr, &tls, peer.id, Service::New)?;
    link.send(&Msg::Hello(PROTOCOL, postcard::to_stdvec(&hello)?), &[])?;
    for (msg, payload) in rest {
        link.send(msg, payload)?;
    }
    let mut last = None;
    until(SOON, "the end of the connection", || {
        let alive = link.wait(Duration::from_millis(100)).is_ok() && !link.closed();
        while let Some(frame) = link.next_frame() {
            last = Some(frame.decode::<Msg>()?);
        }
        Ok((!alive).then_some(()))
    })
    .with_context(|| format!("the last word was {last:?}"))?;
    Ok(last)
}

/// A receiver that is sent garbage says so, ends, and leaves no process and no folder.
pub fn garbage() -> Result<()> {
    let hosts = two_hosts(Who::User, None)?;
    let before = procs::descendants(std::process::id() as i32);
    for (what, rest) in garbage_messages() {
        let last = talk(&hosts, &rest).context(what)?;
        ensure!(matches!(last, Some(Msg::Failed(_))), "{what}: the last word was {last:?}");
        until(SOON, "the end of the receiver", || {
            let mut left = procs::descendants(std::process::id() as i32);
            left.retain(|pid| !before.contains(pid));
            let jobs = hosts.hosts[1].state_dir.join("jobs");
            let folders = fs::read_dir(jobs).map_or(0, Iterator::count);
            Ok((left.is_empty() && folders == 0).then_some(()))
        })
        .context(what)?;
    }
    // The node is as good as before.
    let mut scene = Scene::start(&hosts, "ledger", None)?;
    scene.job.migrate(1)?;
    scene.await_running()?;
    scene.finish()
}
