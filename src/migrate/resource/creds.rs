//! User and group ids, capabilities, securebits (credentials(7), capabilities(7)).

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::{blocker, decode, encode, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Attributes;
use crate::capabilities::Capability;
use crate::control::Finding;
use crate::tracer::inject::{Arg, Data, Outcome, Program};

/// The credentials of one thread.
pub struct Creds;

/// Ids are real, effective, saved, filesystem; sets are bit masks.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    uids: [u32; 4],
    gids: [u32; 4],
    groups: Vec<u32>,
    inheritable: u64,
    permitted: u64,
    effective: u64,
    bounding: u64,
    ambient: u64,
    securebits: u64,
}

/// User and group of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// Of this process.
    #[must_use]
    pub fn own() -> Self {
        Self { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }

    /// Of a process, by its own numbers; `None` when its real, effective, saved and filesystem
    /// ids are not all the same, or its threads' numbers are unknown in its namespace.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(view: &View) -> io::Result<Option<Self>> {
        let Some(seen) = State::of(view).user() else { return Ok(None) };
        let inside = |name: &str, id: u32| -> io::Result<Option<u32>> {
            let map = fs::read_to_string(format!("/proc/{}/{name}", view.pid))?;
            let found = ranges(&map).find_map(|(inner, outer, count)| {
                id.checked_sub(outer).filter(|n| *n < count).map(|n| inner + n)
            });
            Ok(found)
        };
        let (uid, gid) = (inside("uid_map", seen.uid)?, inside("gid_map", seen.gid)?);
        Ok(uid.zip(gid).map(|(uid, gid)| Self { uid, gid }))
    }

    /// Can a process here be given these ids without a user namespace of its own? It can by
    /// root, where the namespace that we are in has such ids.
    #[must_use]
    pub fn is_givable(self) -> bool {
        let known = |name: &str, id: u32| {
            let map = fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
            let found = ranges(&map).any(|(inner, _, count)| id.wrapping_sub(inner) < count);
            found
        };
        self == Self::own()
            || (nix::unistd::geteuid().is_root()
                && known("uid_map", self.uid)
                && known("gid_map", self.gid))
    }
}

/// The ranges of a uid_map or gid_map (user_namespaces(7)): first id inside, first outside,
/// count.
fn ranges(map: &str) -> impl Iterator<Item = (u32, u32, u32)> + '_ {
    map.lines().filter_map(|line| {
        let mut words = line.split_whitespace().map(|w| w.parse::<u32>().ok());
        Some((words.next()??, words.next()??, words.next()??))
    })
}

/// Is the process in the user namespace that we are in?
fn shares_users(pid: i32) -> bool {
    let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/user")).ok();
    let theirs = of(&pid.to_string());
    theirs.is_some() && theirs == of("self")
}

/// setgroups(2) is switched off in this user namespace (user_namespaces(7)).
fn keeps_groups() -> bool {
    fs::read_to_string("/proc/self/setgroups").is_ok_and(|word| word.trim() == "deny")
}

fn ids(view: &View, name: &str) -> [u32; 4] {
    let mut ids = view.field(name).split_whitespace().map(|w| w.parse().unwrap_or(u32::MAX));
    std::array::from_fn(|_| ids.next().unwrap_or(u32::MAX))
}

impl State {
    fn of(view: &View) -> Self {
        Self {
            uids: ids(view, "Uid:"),
            gids: ids(view, "Gid:"),
            groups: view
                .field("Groups:")
                .split_whitespace()
                .filter_map(|w| w.parse().ok())
                .collect(),
            inheritable: view.hex("CapInh:"),
            permitted: view.hex("CapPrm:"),
            effective: view.hex("CapEff:"),
            bounding: view.hex("CapBnd:"),
            ambient: view.hex("CapAmb:"),
            securebits: 0,
        }
    }

    /// The one user and group of the thread, if all its ids are the same.
    fn user(&self) -> Option<User> {
        let (uid, gid) = (self.uids[0], self.gids[0]);
        (self.uids == [uid; 4] && self.gids == [gid; 4]).then_some(User { uid, gid })
    }

    fn same_ids(&self, other: &Self) -> bool {
        (self.uids, self.gids) == (other.uids, other.gids)
    }
}

/// SECBIT_KEEP_CAPS of capabilities(7).
const KEEP_CAPS: u64 = 1 << 4;

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAP_VERSION: u32 = 0x2008_0522;

/// Bits of capability sets (capabilities(7)).
const CAP_SETPCAP: u64 = 1 << 8;

/// `struct __user_cap_data_struct[2]`: effective, permitted, inheritable; low words first.
fn capset(program: &mut Program, effective: u64, permitted: u64, inheritable: u64) {
    let mut header = CAP_VERSION.to_le_bytes().to_vec();
    header.extend_from_slice(&0i32.to_le_bytes());
    let mut data = Vec::new();
    for shift in [0, 32] {
        for set in [effective, permitted, inheritable] {
            data.extend_from_slice(&((set >> shift) as u32).to_le_bytes());
        }
    }
    let (header, data) = (program.data(&header), program.data(&data));
    program.call(libc::SYS_capset, "capset", &[Arg::Data(header), Arg::Data(data)]);
}

fn prctl(program: &mut Program, what: &'static str, args: [u64; 3]) {
    let [option, a, b] = args.map(Arg::Num);
    program.call(libc::SYS_prctl, what, &[option, a, b]);
}

impl Part for Creds {
    fn name(&self) -> &'static str {
        "credentials"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Attributes,
                    "ids",
                    "user and group ids; supplementary groups with root",
                ),
                Capability::moves(
                    Attributes,
                    "capabilities",
                    "capability sets, as far as the target grants them",
                ),
                Capability::moves(
                    Attributes,
                    "securebits",
                    "securebits (PR_SET_SECUREBITS), as far as the target grants them",
                ),
            ]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }
    fn check(&self, view: &View) -> Vec<Finding> {
        let state = State::of(view);
        let own = nix::unistd::geteuid().as_raw();
        let mixed = state.uids.iter().any(|&uid| uid != own);
        if own != 0 && mixed {
            return vec![blocker(
                "VOS-CREDS",
                format!("thread {}", view.job_tid),
                "it runs as another user than the supervisor",
                "run vosrun as root on both nodes",
            )];
        }
        Vec::new()
    }
    fn ask(&self, view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let get = (libc::PR_GET_SECUREBITS as u64).into();
        let row = program.call(libc::SYS_prctl, "PR_GET_SECUREBITS", &[get]);
        let mut state = State::of(view);
        let uids = ask_ids(program, libc::SYS_getresuid, "getresuid", libc::SYS_setfsuid);
        let gids = ask_ids(program, libc::SYS_getresgid, "getresgid", libc::SYS_setfsgid);
        Ok(Box::new(move |_, outcome| {
            state.securebits = outcome.get(row)?;
            (state.uids, state.gids) = (uids.answer(outcome)?, gids.answer(outcome)?);
            encode("credentials", &state)
        }))
    }
    fn tell(&self, state: &[u8], to: &Told, program: &mut Program) -> Result<(), PartError> {
        let state: State = decode(self.name(), state)?;
        let now = State::of(to.view);
        // In a user namespace of its own it has the one user that the namespace was made for.
        let privileged = nix::unistd::geteuid().is_root() && shares_users(to.pid);
        let ids = privileged && !(state.same_ids(&now) && state.groups == now.groups);
        state.tell(&now, ids, program);
        state.say_missed(&now, to);
        Ok(())
    }
}

impl State {
    /// Each step needs capabilities, which a change of ids takes away and the last step gives up.
    /// `now` is what the new thread has; `ids`: it gets user and group ids too.
    fn tell(&self, now: &Self, ids: bool, program: &mut Program) {
        let (permitted, may_set) = (now.permitted, now.permitted & CAP_SETPCAP != 0);
        // Before the bounding set may be too narrow for it.
        let inheritable = self.inheritable & (now.bounding | now.inheritable);
        capset(program, permitted, permitted, inheritable);
        let dropped = now.bounding & !self.bounding;
        for cap in bits(dropped).filter(|_| may_set) {
            prctl(program, "PR_CAPBSET_DROP", [libc::PR_CAPBSET_DROP as u64, cap, 0]);
        }
        if ids {
            give_ids(program, self);
            capset(program, permitted, permitted, inheritable);
        }
        // Raised before a securebit may forbid it.
        for cap in bits(self.ambient & permitted & inheritable) {
            let raise = libc::PR_CAP_AMBIENT_RAISE as u64;
            prctl(program, "PR_CAP_AMBIENT_RAISE", [libc::PR_CAP_AMBIENT as u64, raise, cap]);
        }
        if self.securebits != 0 && may_set {
            let set = libc::PR_SET_SECUREBITS as u64;
            prctl(program, "PR_SET_SECUREBITS", [set, self.securebits, 0]);
        } else if self.securebits & KEEP_CAPS != 0 {
            // This one needs no capability.
            prctl(program, "PR_SET_KEEPCAPS", [libc::PR_SET_KEEPCAPS as u64, 1, 0]);
        }
        let granted = self.permitted & permitted;
        capset(program, self.effective & granted, granted, inheritable);
    }

    /// What this node or namespace does not have cannot be given.
    fn say_missed(&self, now: &Self, to: &Told) {
        let lost = self.permitted & !now.permitted;
        if lost != 0 {
            let text = format!("capabilities {lost:#x} are not granted");
            to.missed.add(format!("thread {}: {text}", to.job_tid));
        }
        let may_set = now.permitted & CAP_SETPCAP != 0;
        if !may_set && (self.securebits & !KEEP_CAPS != 0 || now.bounding & !self.bounding != 0) {
            let text = "its securebits and bounding set are not granted";
            to.missed.add(format!("thread {}: {text}", to.job_tid));
        }
    }
}

fn bits(set: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| set >> bit & 1 != 0)
}

/// Questions for ids as the thread itself sees them; /proc shows them as we do.
struct AskedIds {
    call: usize,
    filesystem: usize,
    three: [Data; 3],
}

fn ask_ids(program: &mut Program, nr: i64, what: &'static str, filesystem: i64) -> AskedIds {
    let three = [(); 3].map(|()| program.data(&[0; 4]));
    let call = program.call(nr, what, &three.map(Arg::Data));
    // An invalid id changes nothing; the answer is the present one (setfsuid(2)).
    let none = Arg::Num(u64::from(u32::MAX));
    AskedIds { call, filesystem: program.call(filesystem, "setfsuid", &[none]), three }
}

impl AskedIds {
    /// Real, effective, saved, filesystem.
    fn answer(&self, outcome: &Outcome) -> Result<[u32; 4], PartError> {
        outcome.get(self.call)?;
        let mut ids = [outcome.get(self.filesystem)? as u32; 4];
        for (id, at) in ids.iter_mut().zip(self.three) {
            *id = outcome.int(at);
        }
        Ok(ids)
    }
}

/// Groups, gids, uids, keeping capabilities until capset(2) takes them.
fn give_ids(program: &mut Program, state: &State) {
    let groups: Vec<u8> = state.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let count = Arg::Num(state.groups.len() as u64);
    let groups = Arg::Data(program.data(&groups));
    if !keeps_groups() {
        program.call(libc::SYS_setgroups, "setgroups", &[count, groups]);
    }
    let [r, e, s, fs] = state.gids.map(|id| Arg::Num(u64::from(id)));
    program.call(libc::SYS_setresgid, "setresgid", &[r, e, s]);
    program.call(libc::SYS_setfsgid, "setfsgid", &[fs]);
    prctl(program, "PR_SET_KEEPCAPS", [libc::PR_SET_KEEPCAPS as u64, 1, 0]);
    let [r, e, s, fs] = state.uids.map(|id| Arg::Num(u64::from(id)));
    program.call(libc::SYS_setresuid, "setresuid", &[r, e, s]);
    program.call(libc::SYS_setfsuid, "setfsuid", &[fs]);
    prctl(program, "PR_SET_KEEPCAPS", [libc::PR_SET_KEEPCAPS as u64, 0, 0]);
}
