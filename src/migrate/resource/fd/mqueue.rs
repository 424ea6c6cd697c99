//! POSIX message queues (mq_overview(7)): name, attributes, messages with their priorities.
//!
//! Messages cannot be peeked at. They are received and sent again at once, in their order, which
//! the queue then has again; while the job is frozen and no other process has the queue open
//! nobody sees the moment in between.
//!
//! A registration for notification (mq_notify(3)) belongs to a process, which makes it anew when all
//! else is there ([`crate::migrate::late`]). The kernel does not tell its value, the handle table
//! does. It would be used up when the first message is sent again: where messages wait, the program
//! is about to take them as a rule.

use std::collections::hash_map::{Entry, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{fchown, MetadataExt};

use serde::{Deserialize, Serialize};

use super::content::{as_path, open_at, reopen, set_mode};
use super::outside::is_open_outside;
use super::{decode, encode, failed, raw, CaptureCx, FdError, FdKind, FdView, Object, RestoreCx};
use crate::capabilities::Area::Ipc;
use crate::capabilities::{Capability, Support};
use crate::control::Finding;
use crate::migrate::resource::View;
use crate::syscalls::handles::{Annotation, Notification};
use crate::syscalls::translate::objects;
use crate::tracer::inject::{Arg, Program};

const NAME: &str = "mqueue";
/// Type of the file system (mqueue, ipc/mqueue.c).
const MAGIC: i64 = 0x1980_0202;
const DELETED: &[u8] = b" (deleted)";

#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// st_dev and st_ino at the source.
    id: (u64, u64),
    /// With its slash.
    name: Vec<u8>,
    /// mq_unlink(3) was called.
    unlinked: bool,
    mode: u32,
    owner: (u32, u32),
    /// mq_maxmsg and mq_msgsize (mq_getattr(3)).
    most: i64,
    size: i64,
    /// Priority and text, in the order in which they are received; empty in all descriptions of
    /// the queue but the first.
    messages: Vec<(u32, Vec<u8>)>,
    flags: i32,
    registration: Option<Registration>,
}

/// Who is notified of the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The queue, as the state has it.
    pub queue: (u64, u64),
    /// The process, as the job sees it.
    pub pid: i32,
    how: Notification,
}

/// A move waits for a queue that says this.
pub const PASSING: &str = "VOS-MQ-BUSY";

/// A queue that was made anew: its identity at the source, and a descriptor.
pub(super) type Queues = HashMap<(u64, u64), OwnedFd>;

pub(super) struct MQueue;

impl FdKind for MQueue {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(Ipc, "posix-mq", "POSIX message queues"),
                Capability::refused(
                    Ipc,
                    "posix-mq-outside",
                    "POSIX message queues that processes outside of the job have open",
                    "VOS-MQUEUE",
                ),
                Capability::moves(
                    Ipc,
                    "posix-mq-notify",
                    "POSIX message queues that notify a process by a signal (mq_notify(3))",
                )
                .attached(Support::Refused("VOS-MQ-NOTIFY")),
                Capability::refused(
                    Ipc,
                    "posix-mq-thread",
                    "POSIX message queues that notify a process by a thread (SIGEV_THREAD)",
                    "VOS-MQ-NOTIFY",
                ),
                Capability::refused(
                    Ipc,
                    "posix-mq-busy",
                    "POSIX message queues that notify a process though messages wait in them",
                    "VOS-MQ-BUSY",
                )
                .attached(Support::Refused("VOS-MQ-NOTIFY")),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.fs == MAGIC && view.file_type() == libc::S_IFREG
    }

    fn check(&self, view: &FdView, cx: &dyn CaptureCx) -> Vec<Finding> {
        match movable(view, cx) {
            Err(FdError::Refused(finding)) => vec![*finding],
            _ => Vec::new(),
        }
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let (queue, registration) = movable(view, cx)?;
        let (most, size, count) =
            raw::mq_attributes(queue.as_raw_fd()).map_err(view.failed("mq_getattr"))?;
        let first = cx.all().iter().find(|v| (v.dev, v.ino) == (view.dev, view.ino));
        let carries = first.is_none_or(|v| (v.host_pid, v.fd) == (view.host_pid, view.fd));
        let messages = match carries && count > 0 {
            true => peek(&queue, size as usize).map_err(view.failed("read the messages"))?,
            false => Vec::new(),
        };
        let link = view.path().map_err(view.failed("read the link"))?;
        let meta = queue.metadata().map_err(view.failed("stat"))?;
        let name = link.strip_suffix(DELETED).filter(|_| view.nlink == 0).unwrap_or(&link);
        encode(&State {
            id: (view.dev, view.ino),
            name: name_of_job(name),
            unlinked: view.nlink == 0,
            mode: view.mode & 0o7777,
            owner: (meta.uid(), meta.gid()),
            most,
            size,
            messages,
            flags: view.flags,
            registration,
        })
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        let state: State = decode(NAME, state)?;
        let queue = create(&state)?;
        reopen(queue.as_raw_fd(), state.flags, 0)
    }

    fn restore(
        &self,
        _object: u32,
        state: &[u8],
        cx: &mut dyn RestoreCx,
    ) -> Result<OwnedFd, FdError> {
        let state: State = decode(NAME, state)?;
        let queue = match cx.shared().queues.entry(state.id) {
            Entry::Occupied(queue) => queue.into_mut(),
            Entry::Vacant(place) => place.insert(create(&state)?),
        };
        reopen(queue.as_raw_fd(), state.flags, 0)
    }
}

/// A description of its own of a queue that can move, and who is notified of its next message.
fn movable(view: &FdView, cx: &dyn CaptureCx) -> Result<(File, Option<Registration>), FdError> {
    let close = "let the program close the queue, or let it finish here";
    let flags = libc::O_RDWR | libc::O_NONBLOCK;
    let queue = match open_at(&view.proc_path(), flags, 0) {
        Err(FdError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            let cause = "its messages may not be read here";
            return Err(view.refuse("VOS-MQUEUE", cause, close));
        }
        other => File::from(other?),
    };
    let registration = registration(view, &queue, cx)?;
    if is_open_outside(view, cx).map_err(view.failed("look for other holders"))? {
        let cause = "a process outside of the job has the queue open";
        return Err(view.refuse("VOS-MQUEUE", cause, close));
    }
    Ok((queue, registration))
}

/// Who is notified of the next message of a queue, if anybody.
fn registration(
    view: &FdView,
    queue: &File,
    cx: &dyn CaptureCx,
) -> Result<Option<Registration>, FdError> {
    let refuse = |code, cause: &str| {
        let remedy = "let the program wait in mq_receive(3) or poll(2) instead";
        Err(view.refuse(code, cause, remedy))
    };
    let mut text = String::new();
    (&*queue).read_to_string(&mut text).map_err(view.failed("read the state"))?;
    let shown = |name| shown(&text, name);
    let host = match shown("NOTIFY_PID:") {
        Some(0) => return Ok(None),
        Some(host) if cx.job_pids().contains(&host) => host,
        _ => {
            let cause = "a process outside of the job is notified of its messages (mq_notify(3))";
            return refuse("VOS-MQ-NOTIFY", cause);
        }
    };
    let known = match cx.annotation(view).map(postcard::from_bytes) {
        Some(Ok(Annotation::Notification(known))) => Some(known),
        _ => None,
    };
    let is_it = |n: &Notification| {
        Some(n.kind) == shown("NOTIFY:")
            && (n.kind == libc::SIGEV_NONE || Some(n.signal) == shown("SIGNO:"))
    };
    let Some(how) = known.filter(is_it) else {
        let cause =
            "a process is notified of its messages (mq_notify(3)) with a value that is not known";
        return refuse("VOS-MQ-NOTIFY", cause);
    };
    if how.kind == libc::SIGEV_THREAD {
        return refuse(
            "VOS-MQ-NOTIFY",
            "a thread is to begin with its next message (SIGEV_THREAD)",
        );
    }
    let (.., count) = raw::mq_attributes(queue.as_raw_fd()).map_err(view.failed("mq_getattr"))?;
    if count > 0 {
        let cause = "messages wait in it, and a process is to be notified of the first after them";
        return refuse(PASSING, cause);
    }
    let owner = View::read_process(host).map_err(view.failed("look at who is notified"))?;
    Ok(Some(Registration { queue: (view.dev, view.ino), pid: owner.job_pid, how }))
}

/// A number of what a queue says when it is read.
fn shown(text: &str, name: &str) -> Option<i32> {
    text.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse().ok())
}

impl Registration {
    /// That of an object, if it is a queue and has one.
    ///
    /// # Errors
    /// When the state does not decode.
    pub fn of(object: &Object) -> Result<Option<Self>, FdError> {
        match object.kind == NAME {
            true => Ok(decode::<State>(NAME, &object.state)?.registration),
            false => Ok(None),
        }
    }

    /// Puts the call into `program` with which its process registers through descriptor `fd`.
    pub fn tell(&self, fd: i32, program: &mut Program) {
        // struct sigevent: value, signal, kind, and room (sigevent(3type)).
        let mut event = [0; 64];
        event[..8].copy_from_slice(&self.how.value.to_le_bytes());
        event[8..12].copy_from_slice(&self.how.signal.to_le_bytes());
        event[12..16].copy_from_slice(&self.how.kind.to_le_bytes());
        let at = Arg::Data(program.data(&event));
        program.call(libc::SYS_mq_notify, "mq_notify", &[Arg::Num(fd as u64), at]);
    }
}

/// The messages of a queue, which it has again afterwards.
fn peek(queue: &File, size: usize) -> io::Result<Vec<(u32, Vec<u8>)>> {
    let mut messages = Vec::new();
    let received = loop {
        match raw::mq_receive(queue.as_raw_fd(), size) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break Ok(()),
            Err(e) => break Err(e),
            Ok(message) => messages.push(message),
        }
    };
    // Those that were taken go back before anything else.
    fill(queue, &messages)?;
    received.map(|()| messages)
}

fn fill(queue: &File, messages: &[(u32, Vec<u8>)]) -> io::Result<()> {
    messages
        .iter()
        .try_for_each(|(priority, text)| raw::mq_send(queue.as_raw_fd(), text, *priority))
}

/// Makes the queue with its messages.
fn create(state: &State) -> Result<OwnedFd, FdError> {
    let shown = as_path(&state.name).display();
    // Another may have its name meanwhile.
    let unlinked = format!("/vosrun.{}.{}", state.id.0, state.id.1).into_bytes();
    let own = objects::queue_to_host(bare(&state.name)).map(|own| with_slash(&own));
    let name = if state.unlinked { &unlinked } else { own.as_ref().unwrap_or(&state.name) };
    let queue = raw::mq_create(name, state.mode, state.most, state.size).map_err(failed(
        format!("mq_open {shown} for {} messages of {} bytes", state.most, state.size),
    ))?;
    let queue = File::from(queue);
    fill(&queue, &state.messages).map_err(failed(format!("fill message queue {shown}")))?;
    let meta = queue.metadata().map_err(failed(format!("stat message queue {shown}")))?;
    if (meta.uid(), meta.gid()) != state.owner {
        fchown(&queue, Some(state.owner.0), Some(state.owner.1))
            .map_err(failed(format!("owner of message queue {shown}")))?;
    }
    set_mode(queue.as_raw_fd(), state.mode)?;
    if state.unlinked {
        raw::mq_unlink(name).map_err(failed(format!("mq_unlink {shown}")))?;
    }
    Ok(queue.into())
}

/// A name without its slash.
fn bare(name: &[u8]) -> &[u8] {
    name.strip_prefix(b"/").unwrap_or(name)
}

fn with_slash(name: &[u8]) -> Vec<u8> {
    [b"/", name].concat()
}

/// The name by which the job knows a queue.
fn name_of_job(name: &[u8]) -> Vec<u8> {
    objects::queue_to_job(bare(name)).map_or_else(|| name.to_vec(), |own| with_slash(&own))
}

/// Where the job has no namespaces: gives those of its queues that have names other ones here.
///
/// # Errors
/// When a state does not decode, or there are no random bytes.
pub fn take_names(all: &[Object]) -> Result<(), FdError> {
    for object in all.iter().filter(|object| object.kind == NAME && objects::are_own()) {
        let state: State = decode(NAME, &object.state)?;
        if !state.unlinked {
            objects::new_queue(bare(&state.name)).map_err(failed("a name for a message queue"))?;
        }
    }
    Ok(())
}

/// The name here of a queue that has one.
#[must_use]
pub fn queue_name(view: &FdView) -> Option<Vec<u8>> {
    (MQueue.recognises(view) && view.nlink > 0).then(|| view.path().ok()).flatten()
}

/// mq_unlink(3) of what a job has left behind.
pub fn unlink_queue(name: &[u8]) {
    match raw::mq_unlink(name) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("mq_unlink {}: {e}", as_path(name).display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::super::testing::{Here, Restored};
    use super::*;

    fn name(of: &str) -> Vec<u8> {
        format!("/vosrun.test.{}.{of}", std::process::id()).into_bytes()
    }

    #[test]
    fn messages_stay_and_come_back_in_their_order() {
        let name = name("order");
        let queue = File::from(raw::mq_create(&name, 0o640, 5, 64).expect("mq_open"));
        let messages: Vec<(u32, Vec<u8>)> =
            vec![(9, b"last".to_vec()), (3, b"a".to_vec()), (3, b"b".to_vec()), (0, Vec::new())];
        for n in [3, 1, 0, 2] {
            fill(&queue, &messages[n..=n]).expect("send");
        }
        let here = Here::of(&[&queue]);
        let object = here.capture(&queue);
        assert_eq!(object.kind, NAME);
        assert_eq!(peek(&queue, 64).expect("peek"), messages);
        raw::mq_unlink(&name).expect("mq_unlink");
        let copy = File::from(Restored::default().restore(&object, 0));
        assert_eq!(peek(&copy, 64).expect("peek"), messages);
        assert_eq!(raw::mq_attributes(copy.as_raw_fd()).expect("attributes"), (5, 64, 4));
        assert_eq!(copy.metadata().expect("stat").mode() & 0o7777, 0o640);
        raw::mq_unlink(&name).expect("mq_unlink of the copy");
        let copy = Restored::default().restore(&Here::of(&[&queue]).capture(&queue), 0);
        assert_eq!(peek(&File::from(copy), 64).expect("peek"), messages);
    }

    #[test]
    fn a_notification_that_nobody_has_seen_is_refused() {
        let name = name("notify");
        let queue = File::from(raw::mq_create(&name, 0o600, 2, 8).expect("mq_open"));
        raw::mq_unlink(&name).expect("mq_unlink");
        let here = Here::of(&[&queue]);
        let view = here.view(&queue);
        // A registration ends when its process closes a descriptor of the queue (ipc/mqueue.c,
        // mqueue_flush_file), as each look does: here one process does both.
        raw::mq_notify_none(queue.as_raw_fd()).expect("mq_notify");
        let found = MQueue.check(&view, &here);
        raw::mq_notify_none(queue.as_raw_fd()).expect("mq_notify");
        match MQueue.capture(&view, &here) {
            Err(FdError::Refused(finding)) => {
                assert_eq!(finding.code, "VOS-MQ-NOTIFY");
                assert_eq!(found, [*finding]);
            }
            other => panic!("{other:?}"),
        }
        here.capture(&queue);
    }

    #[test]
    fn one_that_was_seen_comes_along_when_nothing_waits() {
        let name = name("seen");
        let queue = File::from(raw::mq_create(&name, 0o600, 2, 8).expect("mq_open"));
        raw::mq_unlink(&name).expect("mq_unlink");
        let how = Notification { value: 7, signal: 0, kind: libc::SIGEV_NONE };
        let known = |how| Some(encode(&Annotation::Notification(how)).expect("encode"));
        let mut here = Here::of(&[&queue]);
        here.annotation = known(how);
        // Each look ends the registration, as above.
        let look = |here: &Here| {
            raw::mq_notify_none(queue.as_raw_fd()).expect("mq_notify");
            match MQueue.capture(&here.view(&queue), here) {
                Ok(state) => Ok(decode::<State>(NAME, &state).expect("state").registration),
                Err(FdError::Refused(finding)) => Err(finding.code),
                Err(e) => panic!("{e}"),
            }
        };
        let found = look(&here).expect("state").expect("registration");
        assert_eq!((found.pid, found.how), (std::process::id() as i32, how));
        // Another one than was seen.
        here.annotation = known(Notification { kind: libc::SIGEV_SIGNAL, ..how });
        assert_eq!(look(&here), Err("VOS-MQ-NOTIFY".to_owned()));
        here.annotation = known(how);
        fill(&queue, &[(0, b"x".to_vec())]).expect("send");
        assert_eq!(look(&here), Err(PASSING.to_owned()));
    }

    #[test]
    fn a_holder_outside_is_found() {
        let name = name("outside");
        let queue = File::from(raw::mq_create(&name, 0o600, 2, 8).expect("mq_open"));
        raw::mq_unlink(&name).expect("mq_unlink");
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::from(queue.try_clone().expect("dup")))
            .spawn()
            .expect("cat");
        let found = Here::of(&[&queue]).refusal(&queue);
        drop(child.stdin.take());
        child.wait().expect("wait");
        assert_eq!(found, "VOS-MQUEUE");
        Here::of(&[&queue]).capture(&queue);
    }
}
