//! POSIX message queues (mq_overview(7)): name, attributes, messages with their priorities.
//!
//! Messages cannot be peeked at. They are received and sent again at once, in their order, which
//! the queue then has again; while the job is frozen and no other process has the queue open
//! nobody sees the moment in between. A registration for notification would be used up by that,
//! and the kernel does not tell its value: it is refused.

use std::collections::hash_map::{Entry, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{fchown, MetadataExt};

use serde::{Deserialize, Serialize};

use super::content::{as_path, open_at, reopen, set_mode};
use super::pipe::is_open_outside;
use super::{decode, encode, failed, raw, CaptureCx, FdError, FdKind, FdView, RestoreCx};
use crate::capabilities::Area::Ipc;
use crate::capabilities::Capability;
use crate::control::Finding;

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
}

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
                Capability::refused(
                    Ipc,
                    "posix-mq-notify",
                    "POSIX message queues that notify a process (mq_notify(3))",
                    "VOS-MQ-NOTIFY",
                ),
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
        let queue = movable(view, cx)?;
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
            name: name.to_vec(),
            unlinked: view.nlink == 0,
            mode: view.mode & 0o7777,
            owner: (meta.uid(), meta.gid()),
            most,
            size,
            messages,
            flags: view.flags,
        })
    }

    fn untranslated(&self, _view: &FdView, _cx: &dyn CaptureCx) -> Option<&'static str> {
        Some("its name would be one of all the target's programs")
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

/// A description of its own of a queue that can move.
fn movable(view: &FdView, cx: &dyn CaptureCx) -> Result<File, FdError> {
    let close = "let the program close the queue, or let it finish here";
    let flags = libc::O_RDWR | libc::O_NONBLOCK;
    let queue = match open_at(&view.proc_path(), flags, 0) {
        Err(FdError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            let cause = "its messages may not be read here";
            return Err(view.refuse("VOS-MQUEUE", cause, close));
        }
        other => File::from(other?),
    };
    let mut text = String::new();
    (&queue).read_to_string(&mut text).map_err(view.failed("read the state"))?;
    if owner_of_notification(&text) != Some(0) {
        let cause = "a process has asked to be notified of messages (mq_notify(3))";
        let remedy = "let the program wait in mq_receive(3) or poll(2) instead";
        return Err(view.refuse("VOS-MQ-NOTIFY", cause, remedy));
    }
    if is_open_outside(view, &cx.job_pids()).map_err(view.failed("look for other holders"))? {
        let cause = "a process outside of the job has the queue open";
        return Err(view.refuse("VOS-MQUEUE", cause, close));
    }
    Ok(queue)
}

/// NOTIFY_PID of what a queue says when it is read; 0 if nobody.
fn owner_of_notification(text: &str) -> Option<i32> {
    text.split_whitespace().find_map(|word| word.strip_prefix("NOTIFY_PID:")?.parse().ok())
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
    let name = if state.unlinked { &unlinked } else { &state.name };
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

/// The name of a queue that has one.
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
    fn a_notification_is_refused() {
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
