//! What supervisors say to each other over a link.
//!
//! ```text
//! source                                   target
//! Hello ───────────────────────────────►   (refused: Verdict with blockers)
//!        ◄─────────────────────── Verdict
//! File, Chunk… ◄──────── Want, FileReady   mapped files the target lacks
//! Prepare, Heirs… ─────────────────────►
//!        ◄────────────────────── Prepared  the new process waits for its memory
//! Image ───────────────────────────────►   job frozen
//!        ◄─────── Unknown files, if any
//! Bulk…, Pages/Same…, PagesEnd───────────►
//!        ◄───────────────────────── Ready
//! Commit ──────────────────────────────►
//!        ◄────────────────────────── Done
//! ```
//! Afterwards the link of source and target, or a new one, carries [`Msg::Relay`] and the
//! job's signals and exit between home agent and host.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::image::JobInfo;
use super::resource::creds::User;
use super::resource::fd::regular::Named;
use super::resource::fd::unix::Wanted;
use super::resource::fd::BulkId;
use super::resource::memory::FileId;
use super::skeleton::Plan;
use crate::control::{Finding, MoveEvent, MoveFailure, MoveReport, ProcessStatus};
use crate::ids::{Epoch, JobId, MoveId, NodeId};
use crate::proxy::{AwayState, RelayMsg};
use crate::tracer::Exit;

/// Version of everything here and of the image; other versions are refused.
pub const PROTOCOL: u32 = 14;

/// One message; some carry a payload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Msg {
    /// The first message of a move: protocol version, then a [`Hello`] in postcard.
    Hello(u32, Vec<u8>),
    Verdict(Verdict),
    /// Target: these files of the list (by index) must be described by their hash.
    Want(Vec<u32>),
    /// Source: a file's hash, mode and size.
    File {
        index: u32,
        hash: [u8; 32],
        mode: u32,
        size: u64,
    },
    /// Target: the content of this file is needed (true) or is here already.
    FileAnswer {
        index: u32,
        send: bool,
    },
    /// Source: content (payload), in order.
    Chunk {
        index: u32,
        last: bool,
    },
    /// Target: all files asked for are here.
    FilesReady,
    /// Source: the frame of the processes may be built. A second one takes the place of the first.
    Prepare(Plan),
    /// Source: pages of these ranges (payload) that a process hands down to those below it, by its
    /// index among the plan's members; in the order of the plan's bequests. After the last ones it
    /// forks.
    Heirs {
        member: u32,
        ranges: Vec<(u64, u64)>,
        last: bool,
    },
    /// Target: the frame is there. What could not be mapped at its place to be handed down: member,
    /// first address.
    Prepared(Vec<(u32, u64)>),
    /// Source: a piece of the image (payload); the job is frozen.
    Image {
        last: bool,
    },
    /// Target: files of the image that were not in [`Hello`].
    Unknown(Vec<FileId>),
    /// Source: content of a deleted file or memfd at this offset (payload).
    Bulk {
        id: BulkId,
        offset: u64,
    },
    /// Source: pages of these ranges of a process (payload), by its index in the image.
    Pages {
        process: u32,
        ranges: Vec<(u64, u64)>,
    },
    /// Source: these ranges of a process are as in process `from`, whose pages have come.
    Same {
        process: u32,
        from: u32,
        ranges: Vec<(u64, u64)>,
    },
    PagesEnd,
    Ready,
    Commit,
    Done {
        processes: Vec<ProcessStatus>,
        /// So long before this was sent the job began to run, nanoseconds.
        resumed_ns: u64,
        /// As in [`MoveReport`].
        lost: Vec<String>,
    },
    /// The move is off, for this reason.
    Abort(String),
    /// Target: it could not go on; nothing runs there.
    Failed(Failure),

    /// Target in doubt asks the source what was decided.
    Ask(MoveId),
    /// Source tells a target in doubt, or answers it.
    Decided {
        id: MoveId,
        commit: bool,
    },

    /// Home agent: I am the home of the job, and know this epoch.
    Attach {
        epoch: Epoch,
        /// Who waits for the job at home has seen it stop, and has not let it go on.
        stopped: bool,
        /// Number of the next signal that will come up for the job at home.
        next: u64,
    },
    /// Host: welcome.
    Attached {
        epoch: Epoch,
        processes: Vec<ProcessStatus>,
        /// Every move of the job so far, oldest first.
        history: Vec<MoveReport>,
    },
    /// The job is not here; it went to that node, if that is known.
    Gone {
        to: Option<(NodeId, String)>,
        epoch: Epoch,
    },
    /// A relay message (payload with data).
    Relay(RelayMsg),
    /// Home agent: a signal for the job, numbered over all of its life.
    Signal {
        seq: u64,
        signal: i32,
    },
    /// Host: all signals before this number were taken.
    SignalsTaken(u64),
    /// Source: a signal that came for a process of the copy that stayed behind; `pid` as the job
    /// sees it, none for the job's first process wherever it is now.
    LateSignal {
        pid: Option<i32>,
        signal: i32,
    },
    /// Host: the relays were lost with a supervisor that has died.
    RelaysLost,
    /// Host: the job was stopped by this signal.
    Stopped(i32),
    /// Host: the job has ended and all its output was sent.
    Exited(Exit),
    ExitTaken,
    /// Home agent: a person at home wants the job moved to that node, without namespaces if so.
    PleaseMove(String, bool),
    /// Host: how far that move is.
    Progress(Box<MoveEvent>),
    /// Host: that move has failed, and where the job runs.
    NotMoved(Box<MoveFailure>),
    /// Source, after DONE: the figures of the move, which the target tells the home.
    Report(Box<MoveReport>),
    /// Host's node: the job is not here any more and has gone nowhere; its supervisor has died,
    /// and nobody knows how the job ended.
    Lost,

    /// A job with the end `own` of the connection to `peer` would have one that leads straight to the
    /// other end's job ([`crate::supervisor`]'s moves, `joined`).
    Join {
        job: JobId,
        key: [u8; 32],
        own: SocketAddr,
        peer: SocketAddr,
    },
    /// The other job's supervisor waits for it: at the node's port, or at this one.
    JoinReady {
        port: Option<u16>,
    },
    /// The connection stays as it is, for this reason; it may be tried again if `ever`.
    NoJoin {
        why: String,
        ever: bool,
    },
    /// The asking job is frozen, and the other one is to be.
    JoinFreeze,
    JoinFrozen,
    /// Nothing of the asking job's is under way any more.
    JoinSettle,
    /// Nor of the other's, which has not read this (payload).
    JoinUnread,
    /// The other job gets the new connection; the asking one has not read this (payload).
    JoinSwap,
    /// The other job has the new connection, which has taken what the asking job has not read, or
    /// some of it.
    JoinWritten {
        all: bool,
    },
    /// The connection that was joined with this key takes its old way again on one side.
    Part([u8; 32]),
    /// And on the other.
    Parted([u8; 32]),
}

/// What the target needs to judge a move.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    pub id: MoveId,
    pub job: JobInfo,
    pub epoch: Epoch,
    /// Only judge, nothing will follow (`vosrun check --to`).
    pub dry: bool,
    /// Without namespaces, also where the target could make them (`vosrun migrate --translate`).
    pub translate: bool,
    /// What stands in the way of a target without namespaces.
    pub untranslated: Vec<Finding>,
    /// How many TCP sockets are relayed, and how many UDP sockets.
    pub connections: u32,
    pub datagrams: u32,
    pub source: String,
    /// The node whose agent holds the job's relays: id and name.
    pub home: (NodeId, String),
    /// CPU feature flags of /proc/cpuinfo.
    pub cpu: Vec<String>,
    /// The source's boot ([`crate::boot::id`]); empty when its kernel does not tell.
    pub boot_id: String,
    pub kernel: String,
    /// Resident private memory, bytes.
    pub memory: u64,
    pub largest_tid: i32,
    pub mapped: Vec<FileId>,
    /// Which of them (by index) are mapped shared and writable.
    pub written: Vec<u32>,
    pub open: Vec<Named>,
    /// Names of Unix sockets.
    pub sockets: Vec<Wanted>,
    /// Working directories of its processes.
    pub cwds: Vec<String>,
    /// Affinities of threads that may not run on all CPUs of the source: bit n for CPU n.
    pub affinities: Vec<Vec<u64>>,
    /// Whom it runs as; `None` when its ids are not all the same.
    pub user: Option<User>,
    pub history: Vec<MoveReport>,
}

/// What the target says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Verdict {
    pub findings: Vec<Finding>,
    /// What is fine, short.
    pub ok: Vec<String>,
    /// Open files that need a hash to be judged; the source answers with a new Hello.
    pub unsure: Vec<u32>,
    /// Mapped files (by index) that are not known to be the same here.
    pub mapped: Vec<u32>,
    /// Descriptors that are files of the home only, but may be relayed: host pid at the source,
    /// number.
    pub relay: Vec<(i32, i32)>,
    /// The target's vdso differs: no thread may be inside it.
    pub foreign_vdso: bool,
    /// The job will have no namespaces there.
    pub translated: bool,
}

/// A failure at the target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub code: String,
    pub text: String,
}

/// The image with what belongs to it: sent in pieces as postcard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Parcel {
    pub image: super::image::JobImage,
    pub relays: Vec<AwayState>,
    /// The relays were lost with a supervisor that has died; there are none any more.
    pub relays_lost: bool,
    /// (object of the image, stream).
    pub streams: Vec<(u32, u32)>,
    /// Annotations of the handle table (`syscalls::handles`): index of the process in the image,
    /// descriptor, annotation.
    pub annotations: Vec<(u32, i32, Vec<u8>)>,
    /// Number of the next signal that the job has not taken.
    pub signals_taken: u64,
}
