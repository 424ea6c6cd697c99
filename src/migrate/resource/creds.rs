//! User and group ids, capabilities, securebits (credentials(7), capabilities(7)).

use serde::{Deserialize, Serialize};

use super::{blocker, decode, encode, Answer, Part, PartError, Scope, Told, View};
use crate::control::Finding;
use crate::tracer::inject::{Arg, Program};

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

    fn same_ids(&self, other: &Self) -> bool {
        (self.uids, self.gids) == (other.uids, other.gids)
    }
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAP_VERSION: u32 = 0x2008_0522;

/// `struct __user_cap_data_struct[2]`: effective, permitted, inheritable; low words first.
fn capset(program: &mut Program, state: &State) {
    let mut header = CAP_VERSION.to_le_bytes().to_vec();
    header.extend_from_slice(&0i32.to_le_bytes());
    let mut data = Vec::new();
    for shift in [0, 32] {
        for set in [state.effective, state.permitted, state.inheritable] {
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
        Ok(Box::new(move |_, outcome| {
            state.securebits = outcome.get(row)?;
            encode("credentials", &state)
        }))
    }
    fn tell(&self, state: &[u8], to: &Told, program: &mut Program) -> Result<(), PartError> {
        let mut state: State = decode(self.name(), state)?;
        let now = State::of(to.view);
        // What this node or namespace does not have cannot be given.
        state.permitted &= now.permitted;
        state.effective &= state.permitted;
        state.inheritable &= now.bounding;
        if state.bounding & now.bounding != now.bounding {
            for cap in (0..64).filter(|c| (now.bounding & !state.bounding) >> c & 1 != 0) {
                let drop = libc::PR_CAPBSET_DROP as u64;
                prctl(program, "PR_CAPBSET_DROP", [drop, cap, 0]);
            }
        }
        let privileged = nix::unistd::geteuid().is_root();
        if !state.same_ids(&now) || (privileged && state.groups != now.groups) {
            give_ids(program, &state);
        }
        if state.securebits != 0 {
            let set = libc::PR_SET_SECUREBITS as u64;
            prctl(program, "PR_SET_SECUREBITS", [set, state.securebits, 0]);
        }
        capset(program, &state);
        for cap in (0..64).filter(|c| state.ambient >> c & 1 != 0) {
            program.call(
                libc::SYS_prctl,
                "PR_CAP_AMBIENT_RAISE",
                &[
                    (libc::PR_CAP_AMBIENT as u64).into(),
                    (libc::PR_CAP_AMBIENT_RAISE as u64).into(),
                    cap.into(),
                ],
            );
        }
        Ok(())
    }
}

/// Groups, gids, uids, keeping capabilities until capset(2) takes them.
fn give_ids(program: &mut Program, state: &State) {
    let groups: Vec<u8> = state.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let count = Arg::Num(state.groups.len() as u64);
    let groups = Arg::Data(program.data(&groups));
    program.call(libc::SYS_setgroups, "setgroups", &[count, groups]);
    let [r, e, s, fs] = state.gids.map(|id| Arg::Num(u64::from(id)));
    program.call(libc::SYS_setresgid, "setresgid", &[r, e, s]);
    program.call(libc::SYS_setfsgid, "setfsgid", &[fs]);
    prctl(program, "PR_SET_KEEPCAPS", [libc::PR_SET_KEEPCAPS as u64, 1, 0]);
    let [r, e, s, fs] = state.uids.map(|id| Arg::Num(u64::from(id)));
    program.call(libc::SYS_setresuid, "setresuid", &[r, e, s]);
    program.call(libc::SYS_setfsuid, "setfsuid", &[fs]);
    prctl(program, "PR_SET_KEEPCAPS", [libc::PR_SET_KEEPCAPS as u64, 0, 0]);
}
