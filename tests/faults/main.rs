//! Moves that fail, at every point: the job always runs on exactly one host, or is frozen and
//! named, and the command says so with its exit code.
//!
//! Every cell runs the guest `ledger`, which appends its turns to a file: two copies that ran
//! at once would write a number twice, a state that went back would repeat one.

#[path = "../common/mod.rs"]
mod common;
mod cut;
mod garbage;
mod killed;
mod refused;
mod scene;
mod turns;

use std::process::ExitCode;

use anyhow::Result;

use common::runner::Cell;
use common::Who;

fn cell(name: String, run: impl Fn() -> Result<()> + Send + Sync + 'static) -> Cell {
    Cell::new(name, move |_| run()).limit(240)
}

const SOURCE_POINTS: [&str; 7] =
    ["before-hello", "copy", "frozen", "image-sent", "ready-received", "committed", "done"];

/// Cells that are the same with hosts of both kinds.
fn cells_as(who: Who) -> Vec<Cell> {
    type Run = fn(Who) -> Result<()>;
    let plain: [(&str, Run); 13] = [
        ("rest/source-killed", killed::killed_at_rest),
        ("rest/target-killed", killed::killed_at_rest_away),
        ("refused/no-such-node", refused::no_such_node),
        ("refused/node-down", refused::node_down),
        ("refused/unmovable", refused::unmovable),
        ("refused/lease-broken", refused::lease_broken),
        ("refused/no-namespaces", refused::no_namespaces),
        ("source-killed/heirs", killed::source_killed_handing_down),
        ("target-killed/behind-heirs", killed::target_killed_handing_down),
        ("job/exits/before-hello", |who| turns::job_exits(who, "before-hello")),
        ("job/exits/frozen", |who| turns::job_exits(who, "frozen")),
        ("job/execs", |who| turns::job_turns(who, "exec")),
        ("job/forks", |who| turns::job_turns(who, "fork")),
    ];
    let word = who.word();
    let named = |name: &str| format!("{word}/{name}");
    let mut cells: Vec<Cell> =
        plain.iter().map(|&(name, run)| cell(named(name), move || run(who))).collect();
    cells.push(Cell::new(named("two-moves"), move |w| turns::two_moves(w, who)).limit(240));
    for point in SOURCE_POINTS {
        let name = named(&format!("source-killed/{point}"));
        cells.push(cell(name, move || killed::source_killed(who, point)));
    }
    for point in ["ready", "commit-received", "owned"] {
        let name = named(&format!("target-killed/{point}"));
        cells.push(cell(name, move || killed::target_killed(who, point)));
    }
    for point in ["ready-received", "committed"] {
        let name = named(&format!("target-killed/behind-{point}"));
        cells.push(cell(name, move || killed::target_killed_behind(who, point)));
    }
    cells
}

fn cells() -> Vec<Cell> {
    let mut cells = cells_as(Who::User);
    cells.extend(cells_as(Who::Root));
    cells.extend([
        cell("root/target/disk-full".into(), refused::disk_full),
        cell("user/target/disk-full-limit".into(), refused::disk_full_limit),
        cell("user/target/no-memory".into(), refused::no_memory),
        cell("user/garbage".into(), garbage::garbage),
        cell("root/link-cut/home-misses-a-move".into(), cut::home_misses_a_move),
    ]);
    for point in ["before-hello", "copy", "frozen", "image-sent", "ready-received", "committed"] {
        cells.push(cell(format!("root/link-cut/{point}"), move || cut::link_cut(false, point)));
    }
    for point in ["ready", "commit-received", "owned"] {
        cells.push(cell(format!("root/link-cut/{point}"), move || cut::link_cut(true, point)));
    }
    cells
}

fn main() -> ExitCode {
    common::runner::main(cells())
}
