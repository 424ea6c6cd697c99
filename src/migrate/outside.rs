//! What /proc tells of frozen processes, read before they are asked themselves.

use super::ahead;
use super::apart::Common;
use super::freeze::FrozenProcess;
use super::resource::filters::{self, Filter};
use super::resource::memory::{self, MmImage};
use super::resource::{PartError, View};
use crate::control::Severity;

/// Whom to read.
#[derive(Debug)]
pub struct Subject {
    pid: i32,
    tids: Vec<i32>,
    opened: bool,
    keys: bool,
}

impl From<&FrozenProcess> for Subject {
    fn from(frozen: &FrozenProcess) -> Self {
        let tids = frozen.threads.iter().map(|thread| thread.tid).collect();
        Self { pid: frozen.pid, tids, opened: frozen.opened.is_some(), keys: frozen.keys }
    }
}

/// A process as it is seen from outside.
#[derive(Debug)]
pub struct Outside {
    pub memory: MmImage,
    /// Of its threads, in their order.
    pub views: Vec<View>,
    /// Their own seccomp filters.
    pub filters: Vec<Vec<Filter>>,
}

impl Outside {
    /// Reads a frozen process. `identities` are device and inode of the job's descriptions,
    /// `common` is what all its threads have.
    ///
    /// # Errors
    /// The first thing that cannot move, or that could not be read.
    pub fn read(
        subject: &Subject,
        identities: &[(u64, u64)],
        common: &Common,
    ) -> Result<Self, PartError> {
        let memory = memory::capture(subject.pid, 0, identities, common.submitted())?;
        let views = subject.tids.iter().map(|tid| view(subject, *tid, common));
        let views = views.collect::<Result<Vec<_>, _>>()?;
        let own = |tid: &i32| common.chain(*tid).iter().map(|filter| (**filter).clone()).collect();
        let filters: Vec<Vec<Filter>> = subject.tids.iter().map(own).collect();
        filters::check_shared(&views, &filters)?;
        Ok(Self { memory, views, filters })
    }
}

fn view(subject: &Subject, tid: i32, common: &Common) -> Result<View, PartError> {
    let failed = || move |source| PartError::Io { what: format!("status of thread {tid}"), source };
    let mut view = View::read(subject.pid, tid).map_err(failed())?;
    (view.opened, view.keys) = (view.opened || subject.opened, subject.keys);
    // What hinders it, which the look before the move has not seen yet.
    let found = common.check(&view).map_err(failed())?;
    let blocker = found.into_iter().find(|finding| finding.severity == Severity::Blocker);
    blocker.map_or(Ok(()), |finding| Err(PartError::Refused(Box::new(finding))))?;
    view.read_parts()?;
    Ok(view)
}

/// Lets `ask` ask all the processes while they are read ahead of it, and gives it the next one at
/// each call; reading ends with `ask`. The arguments are those of [`Outside::read`]. Nothing is read
/// ahead of `ask` when processes have `one_memory`: what asks one would be seen in the others.
pub fn read_ahead<T>(
    subjects: &[Subject],
    identities: &[(u64, u64)],
    common: &Common,
    one_memory: bool,
    ask: impl FnOnce(&mut dyn FnMut() -> Result<Outside, PartError>) -> T,
) -> T {
    let read = |subject: &Subject| Outside::read(subject, identities, common);
    let ask = |next: &mut dyn FnMut() -> Option<Result<Outside, PartError>>| {
        ask(&mut || next().unwrap_or(Err(PartError::State("processes read"))))
    };
    match one_memory {
        true => ahead::read_now(subjects, read, ask),
        false => ahead::read_ahead(subjects, read, ask),
    }
}
