//! What processes of the job have in common since fork(2) goes ahead with the frame
//! ([`crate::migrate::heritage`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use super::super::hook::reached;
use super::super::Mover;
use super::freezing::job_clocks;
use super::outcome::{cancelled, out_of_order, own, Step1};
use super::send::chunks;
use super::{Target, PATIENCE};
use crate::migrate::capture;
use crate::migrate::heritage::choose::{choose, Chosen};
use crate::migrate::heritage::{ancestors, lineage, page_hash, Bequest, Handed, Ranges};
use crate::migrate::message::Msg;
use crate::migrate::programs;
use crate::migrate::raw::Shared;
use crate::migrate::resource::memory::read_mem;
use crate::migrate::resource::View;
use crate::migrate::skeleton::Plan;
use crate::migrate::tree;
use crate::tracer::memory::{push_range, PAGE};

impl Mover {
    /// Lets the target make the frame of the job's processes. Gives what they have of memory there.
    pub(super) fn prepare(
        &mut self,
        target: &Target,
        plan: &mut Plan,
        translated: bool,
    ) -> Step1<Handed> {
        let (mut handed, chosen) = match translated {
            true => Default::default(),
            false => self.heirlooms(plan)?,
        };
        let bequest = |(member, chosen): &(usize, Chosen)| Bequest {
            member: *member as u32,
            mappings: chosen.mappings.clone(),
        };
        plan.bequests = chosen.iter().map(bequest).collect();
        plan.programs = match translated {
            true => programs::of(&self.pids(), &plan.members).map_err(own)?,
            false => Vec::new(),
        };
        // That took a while.
        plan.clocks = job_clocks(&self.sup.session).map_err(own)?;
        self.send(target.key, &Msg::Prepare(plan.clone()), &[]);
        for (member, chosen) in chosen {
            self.hand_down(target, member, chosen, &mut handed)?;
        }
        match self.answer(target, PATIENCE)? {
            (Msg::Prepared(refused), _) => {
                refused.iter().for_each(|(member, start)| handed.refuse(*member as usize, *start));
                Ok(handed)
            }
            (other, _) => Err(out_of_order(&other)),
        }
    }

    /// What the members of a plan are to hand down, the upper ones first. None where they share
    /// memory itself: who forks takes turns with others then.
    fn heirlooms(&mut self, plan: &Plan) -> Step1<(Handed, Vec<(usize, Chosen)>)> {
        let members = &plan.members;
        let alone = members.len() < 2;
        let one_memory = members.iter().any(|m| m.shares.first(Shared::Memory).is_some());
        let tree = tree::plan(members).ok().filter(|_| !alone && !one_memory);
        let Some(tree) = tree else { return Ok(Default::default()) };
        let lineage = lineage(&tree);
        let hosts: BTreeMap<i32, i32> = self.pids().into_iter().filter_map(numbered).collect();
        let host = |member: usize| hosts.get(&members.get(member)?.ids.pid).copied();
        let mut children: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
        for (member, above) in lineage.iter().enumerate() {
            if let Some((above, pid)) = above.zip(host(member)) {
                children.entry(above).or_default().push(pid);
            }
        }
        let mut order: Vec<usize> = children.keys().copied().collect();
        order.sort_by_cached_key(|member| ancestors(&lineage, *member).count());
        let (mut handed, mut all) = (Handed::new(lineage), Vec::new());
        for member in order {
            self.go_on()?;
            let Some(pid) = host(member).filter(|pid| self.is_of_job(*pid)) else { continue };
            // Who is gone, or executes a program just now, hands nothing down.
            let chosen = choose(pid, &children[&member], &handed.mappings(member));
            if let Some(chosen) = chosen.ok().filter(|chosen| !chosen.pages.is_empty()) {
                handed.add(member, chosen.mappings.clone());
                all.push((member, chosen));
            }
        }
        Ok((handed, all))
    }

    /// The job runs and may want something meanwhile, and so may a person.
    fn go_on(&mut self) -> Step1<()> {
        self.pump(Some(Duration::ZERO)).map_err(own)?;
        self.requests_while_moving().map_err(own)?;
        match self.is_cancelled() {
            true => Err(cancelled()),
            false => Ok(()),
        }
    }

    /// Its number is not another's by now.
    fn is_of_job(&self, pid: i32) -> bool {
        self.sup.session.tasks.contains_key(&pid)
    }

    /// Sends the pages that a member hands down, but those that it inherits itself.
    fn hand_down(
        &mut self,
        target: &Target,
        member: usize,
        chosen: Chosen,
        handed: &mut Handed,
    ) -> Step1<()> {
        let index = member as u32;
        for (pid, ranges) in chosen.pages {
            let memory = self.is_of_job(pid).then(|| File::open(format!("/proc/{pid}/mem")));
            let Some(Ok(memory)) = memory else { continue };
            for ranges in chunks(&ranges) {
                self.go_on()?;
                // What the job has given back meanwhile is left out.
                let len: u64 = ranges.iter().map(|(start, end)| end - start).sum();
                let mut bytes = vec![0; len as usize];
                if read_mem(&memory, &ranges, &mut bytes).is_err() {
                    continue;
                }
                let (ranges, len) = new_pages(handed, member, &ranges, &mut bytes);
                if len > 0 {
                    let msg = Msg::Heirs { member: index, ranges, last: false };
                    self.send(target.key, &msg, &bytes[..len]);
                    self.flow(target)?;
                }
            }
        }
        reached("heirs");
        let last = Msg::Heirs { member: index, ranges: Vec::new(), last: true };
        self.send(target.key, &last, &[]);
        self.flow(target)
    }
}

/// The number of a process in the job, and here.
fn numbered(pid: i32) -> Option<(i32, i32)> {
    let ids = capture::ids(&View::read_process(pid).ok()?).ok()?;
    Some((ids.pid, pid))
}

/// The pages among these that a member does not inherit with the same content; their bytes are
/// moved to the begin of the buffer.
fn new_pages(
    handed: &mut Handed,
    member: usize,
    ranges: &[(u64, u64)],
    bytes: &mut [u8],
) -> (Ranges, usize) {
    let page = PAGE as usize;
    let (mut new, mut len) = (Vec::new(), 0);
    let addresses = ranges.iter().flat_map(|(start, end)| (*start..*end).step_by(page));
    for (n, address) in addresses.enumerate() {
        let at = n * page;
        let hash = page_hash(&bytes[at..at + page]);
        if handed.at(member, address) == Some(hash) {
            continue;
        }
        handed.note(member, address, hash);
        bytes.copy_within(at..at + page, len);
        len += page;
        push_range(&mut new, address, address + PAGE);
    }
    (new, len)
}
