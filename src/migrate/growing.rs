//! A frame while its processes fork each other, and take up what they hand down
//! ([`super::heritage`]).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::heritage::gate::{Gate, Place};
use super::heritage::{
    ancestors, check, joined, lineage, within, without, Bequest, Heirloom, Heritage, Ranges,
};
use super::programs::{self, Executes};
use super::raw::Shared;
use super::resource::fd::pty::raw::{query, Query};
use super::resource::memory::FileId;
use super::resource::raw::write_ranges;
use super::skeleton::{
    ahead, io_error, kill, make_room, out_of_order, pair, receive, send, Footing, Frame,
    NewProcess, Plan, Request, Result, Skeleton, SkeletonError, Word,
};
use super::tree::{self, Role, Tree};
use super::{newborn, raw};
use crate::migrate::image::Clocks;
use crate::migrate::skeleton::own_clocks;
use crate::proxy::PtyPair;
use crate::syscalls::translate::{numbers, objects, ptys};
use crate::tracer::inject;

/// The path here of a file that a mapping is made of, if it is known.
pub type Paths<'a> = dyn Fn(&FileId) -> Option<String> + 'a;

/// A frame that is not complete. It ends when it is dropped.
#[derive(Debug)]
pub struct Growing {
    plan: Plan,
    tree: Tree,
    footing: Footing,
    ahead: Option<Clocks>,
    control: OwnedFd,
    found: Found,
    /// Who inherits from whom, by member.
    lineage: Vec<Option<usize>>,
    /// How many members have got what they hand down.
    passed: usize,
    /// Which pages each member has got to hand down.
    pages: BTreeMap<usize, Ranges>,
    /// What could not be mapped.
    refused: BTreeMap<usize, Vec<Heirloom>>,
    complete: bool,
}

impl Growing {
    /// Makes the namespaces and pid 1, which makes the rest. `paths` leads to files of mappings.
    /// The caller has one thread.
    ///
    /// # Errors
    /// The step that failed, in words.
    pub fn begin(plan: &Plan, footing: Footing, paths: &Paths) -> Result<Self> {
        let tree = tree::plan(&plan.members).map_err(SkeletonError::Refused)?;
        let lineage = lineage(&tree);
        check(&plan.bequests, &lineage).map_err(|why| SkeletonError::Step(why.into()))?;
        let one_memory = plan.members.iter().any(|m| m.shares.first(Shared::Memory).is_some());
        if !plan.bequests.is_empty() && (footing != Footing::Namespaces || one_memory) {
            return Err(SkeletonError::Step("memory is handed down where none can be".into()));
        }
        let gates = gates(plan, &tree, paths)?;
        let programs = match footing {
            Footing::Namespaces => Vec::new(),
            Footing::Translated => executed(plan, &tree, paths)?,
        };
        make_room(tree.nodes.len() as u64)?;
        let (control, theirs) = pair()?;
        raw::pass_credentials(control.as_fd()).map_err(io_error("SO_PASSCRED"))?;
        let now = own_clocks().map_err(io_error("clock_gettime"))?;
        let ahead = match footing {
            Footing::Namespaces => None,
            Footing::Translated => Some(ahead(plan, now)?),
        };
        match ahead {
            None => numbers::end(),
            Some(ahead) => numbers::begin(ahead),
        }
        let h = raw::fork(None).map_err(io_error("fork"))?;
        if h == 0 {
            newborn::start(plan, &tree, (gates, programs), now, theirs, footing);
        }
        drop(theirs);
        let mut growing = Self {
            plan: plan.clone(),
            tree,
            footing,
            ahead,
            control,
            found: Found::default(),
            lineage,
            passed: 0,
            pages: BTreeMap::new(),
            refused: BTreeMap::new(),
            complete: false,
        };
        let mut begun = Ok(());
        while begun.is_ok() && growing.found.init == 0 {
            begun = growing.hear();
        }
        if begun.is_err() {
            growing.abandon();
        }
        if begun.is_err() || !plan.root().is_some_and(tree::parent_is_outside) {
            // H ends as soon as pid 1 is there, or has failed.
            let _ = waitpid(Pid::from_raw(h), None);
        }
        begun.map(|()| growing)
    }

    /// Does a process wait for pages?
    #[must_use]
    pub fn waits(&self) -> bool {
        self.passed < self.plan.bequests.len()
    }

    /// Pages that a member hands down; after the `last` ones it forks.
    ///
    /// # Errors
    /// When they are out of order, or lie in no mapping that it hands down.
    pub fn fill(
        &mut self,
        member: u32,
        ranges: &[(u64, u64)],
        bytes: &[u8],
        last: bool,
    ) -> Result<()> {
        let next = self.plan.bequests.get(self.passed).filter(|next| next.member == member);
        let member = next.ok_or_else(out_of_order)?.member as usize;
        let node = self.tree.members.get(member).copied().flatten().ok_or_else(out_of_order)?;
        while !self.found.waiting.contains_key(&node) {
            self.hear()?;
        }
        let waiting = self.found.waiting.get_mut(&node).ok_or_else(out_of_order)?;
        let (pid, refused) = (waiting.pid, std::mem::take(&mut waiting.refused));
        let own = self.plan.bequests.get_mut(self.passed).ok_or_else(out_of_order)?;
        for place in refused.into_iter().rev().map(|place| place as usize) {
            if place < own.mappings.len() {
                self.refused.entry(member).or_default().push(own.mappings.remove(place));
            }
        }
        let (limits, known) = self.ranges(member);
        if !without(ranges, &known).is_empty() {
            return Err(SkeletonError::Step("pages of no mapping that is handed down".into()));
        }
        let written = write(pid, ranges, bytes, &limits);
        let written = written.map_err(io_error("pages of the new processes"))?;
        self.pages.entry(member).or_default().extend(written);
        if last {
            if let Some(waiting) = self.found.waiting.remove(&node) {
                send(waiting.control.as_fd(), &Request::Grow, &[])
                    .map_err(io_error("start of the new processes"))?;
            }
            self.passed += 1;
        }
        Ok(())
    }

    /// What a member has of mappings to hand down, its own and those of the members above.
    fn heirlooms(&self, member: usize) -> impl Iterator<Item = &Heirloom> + '_ {
        ancestors(&self.lineage, member).flat_map(|above| {
            let own = self.plan.bequests.iter().find(|b| b.member as usize == above);
            own.into_iter().flat_map(|own| &own.mappings)
        })
    }

    /// Where a member has memory to hand down, and the same with what could not be mapped.
    fn ranges(&self, member: usize) -> (Ranges, Ranges) {
        let range = |m: &Heirloom| (m.start, m.end);
        let mapped = joined(self.heirlooms(member).map(range).collect());
        let above = ancestors(&self.lineage, member);
        let refused = above.filter_map(|above| self.refused.get(&above)).flatten().map(range);
        let all = joined(refused.chain(mapped.iter().copied()).collect());
        (mapped, all)
    }

    fn heritage(&self, member: usize) -> Heritage {
        let above = ancestors(&self.lineage, member);
        let pages = above.filter_map(|above| self.pages.get(&above)).flatten().copied();
        Heritage {
            pages: joined(pages.collect()),
            mappings: self.heirlooms(member).cloned().collect(),
        }
    }

    /// What could not be mapped to be handed down: member, first address.
    #[must_use]
    pub fn refused(&self) -> Vec<(u32, u64)> {
        let each = self.refused.iter().flat_map(|(member, all)| all.iter().map(|m| (*member, m)));
        each.map(|(member, m)| (member as u32, m.start)).collect()
    }

    /// The frame, when all its processes are there; [`Skeleton::settle`] is next.
    ///
    /// # Errors
    /// The step that failed, in words.
    pub fn finish(mut self) -> Result<Skeleton> {
        if self.waits() {
            return Err(out_of_order());
        }
        let expected = self.expected();
        while self.found.born.len() + self.found.standins.len() < expected {
            self.hear()?;
        }
        self.complete = true;
        let Found { init, host_proc, terminals, mut born, standins, .. } =
            std::mem::take(&mut self.found);
        let (mut processes, mut living) = (Vec::new(), BTreeMap::new());
        let mut heritage = Vec::new();
        for (index, (member, node)) in self.plan.members.iter().zip(&self.tree.members).enumerate()
        {
            let Some(node) = node.filter(|_| member.ended.is_none()) else { continue };
            if let Some(process) = born.remove(&node) {
                living.insert(node, processes.len());
                processes.push(process);
                heritage.push(self.heritage(index));
            }
        }
        for (place, pair) in &terminals {
            let terminal = self.plan.terminals.get(*place).ok_or_else(out_of_order)?;
            let number = query(pair.master.as_fd(), Query::Number);
            let number = number.map_err(io_error("the number of a terminal"))?;
            ptys::bind(terminal.number, number.cast_unsigned());
        }
        if let (Some(_), Some(pid1)) = (self.ahead, born.get(&0)) {
            let pid1 = pid1.control.try_clone().map_err(io_error("socket of pid 1"))?;
            objects::keep_with(pid1);
        }
        let members = std::mem::take(&mut self.plan.members);
        let frame = Frame { members, tree: self.tree.clone(), rest: born, living };
        Ok(Skeleton {
            pid: processes.first().map_or(0, |p| p.pid),
            init,
            host_proc,
            ahead: self.ahead,
            standins,
            processes,
            terminals,
            heritage,
            frame,
        })
    }

    /// How many processes say that they are there.
    fn expected(&self) -> usize {
        let waits = |role: Role| match role {
            Role::Carrier => false,
            Role::Parent | Role::GroupLeader => self.footing == Footing::Translated,
            _ => true,
        };
        self.tree.nodes.iter().filter(|n| waits(n.role)).count()
    }

    fn hear(&mut self) -> Result<()> {
        self.found.hear(&self.tree, self.control.as_fd())
    }

    fn abandon(&mut self) {
        if !std::mem::replace(&mut self.complete, true) && self.found.init != 0 {
            kill(self.found.init);
            // Without namespaces the others end when their sockets do.
            let _ = waitpid(Pid::from_raw(self.found.init), None);
        }
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// Where processes of the plan stop before they fork.
fn gates(plan: &Plan, tree: &Tree, paths: &Paths) -> Result<Vec<Gate>> {
    let gate = |bequest: &Bequest| {
        let node = tree.members.get(bequest.member as usize).copied().flatten()?;
        let place = |m: &Heirloom| Place {
            path: m.file.as_ref().and_then(|(file, _)| paths(file)),
            heirloom: m.clone(),
        };
        Some(Gate { node, places: bequest.mappings.iter().map(place).collect() })
    };
    let gates: Option<Vec<Gate>> = plan.bequests.iter().map(gate).collect();
    gates.ok_or_else(|| SkeletonError::Step("a bequest of no process".into()))
}

/// Which processes of the plan execute what before they fork.
fn executed(plan: &Plan, tree: &Tree, paths: &Paths) -> Result<Vec<Executes>> {
    let all = programs::executors(tree, &plan.members, &plan.programs);
    let all = all.map_err(SkeletonError::Refused)?.into_iter().map(|(node, file)| {
        let missing = || SkeletonError::Step(format!("{} is not known here", file.path));
        Ok(Executes { node, path: paths(&file).ok_or_else(missing)? })
    });
    all.collect()
}

/// Writes pages of a process that waits, as far as they lie in `limits`. Gives those.
fn write(
    pid: i32,
    ranges: &[(u64, u64)],
    bytes: &[u8],
    limits: &[(u64, u64)],
) -> io::Result<Ranges> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let (mut at, mut parts) = (0_usize, Vec::new());
    for &(start, end) in ranges {
        let len = end.checked_sub(start).and_then(|len| usize::try_from(len).ok());
        let to = len.and_then(|len| at.checked_add(len)).filter(|to| *to <= bytes.len());
        let to = to.ok_or_else(bad)?;
        for (from, until) in within(&[(start, end)], limits) {
            let skipped = at + (from - start) as usize;
            parts.push(((from, until), skipped));
        }
        at = to;
    }
    let good: Ranges = parts.iter().map(|(range, _)| *range).collect();
    if good == ranges && at == bytes.len() && write_ranges(pid, ranges, bytes).is_ok() {
        return Ok(good);
    }
    for ((start, end), at) in parts {
        let piece = bytes.get(at..at + (end - start) as usize).ok_or_else(bad)?;
        inject::write_all(pid, start, piece)?;
    }
    Ok(good)
}

/// A process that waits for what it hands down.
#[derive(Debug)]
struct Waiting {
    pid: i32,
    control: OwnedFd,
    /// What it could not map, by its place in the bequest.
    refused: Vec<u32>,
}

/// What has been heard of the new processes.
#[derive(Debug, Default)]
struct Found {
    init: i32,
    host_proc: bool,
    terminals: BTreeMap<usize, PtyPair>,
    born: BTreeMap<usize, NewProcess>,
    standins: Vec<i32>,
    waiting: BTreeMap<usize, Waiting>,
}

impl Found {
    /// The next message.
    fn hear(&mut self, tree: &Tree, control: BorrowedFd) -> Result<()> {
        let (word, pid, fds) =
            receive::<Word>(control).map_err(io_error("start of the new processes"))?;
        match word {
            Word::Init(without) => {
                (self.init, self.host_proc) = (pid, without);
                numbers::bind(1, pid);
            }
            Word::StandIn(node) => {
                let own = tree.nodes.get(node as usize).ok_or_else(out_of_order)?;
                numbers::bind(own.pid, pid);
                self.standins.push(pid);
            }
            Word::Terminal(place) => {
                let mut fds = fds.into_iter();
                let both = fds.next().zip(fds.next()).ok_or_else(out_of_order)?;
                let pair = PtyPair { master: both.0, slave: both.1 };
                self.terminals.insert(place as usize, pair);
            }
            Word::Gate(node, refused) => {
                let control = fds.into_iter().next().ok_or_else(out_of_order)?;
                self.waiting.insert(node as usize, Waiting { pid, control, refused });
            }
            Word::Born(node, number) => {
                let node = node as usize;
                let at = tree.nodes.get(node).zip(fds.into_iter().next());
                let (own, control) = at.ok_or_else(out_of_order)?;
                numbers::bind(own.pid, pid);
                self.born.insert(node, NewProcess { job_pid: own.pid, pid, control, number });
            }
            Word::Failed(text) => return Err(SkeletonError::Step(text)),
            Word::Execute(node, exe) => {
                let own = tree.nodes.get(node as usize).ok_or_else(out_of_order)?;
                let control = fds.into_iter().next().ok_or_else(out_of_order)?;
                let failed =
                    |e| SkeletonError::Step(format!("program of process {}: {e}", own.pid));
                programs::execute(pid, exe).map_err(failed)?;
                send(control.as_fd(), &Request::Grow, &[])
                    .map_err(io_error("start of the new processes"))?;
            }
            Word::Ready
            | Word::Made(_)
            | Word::More
            | Word::Built(_)
            | Word::Act(..)
            | Word::StoodFor(..) => return Err(out_of_order()),
        }
        Ok(())
    }
}
