//! System V IPC of the job that is given up.

use std::collections::BTreeMap;

use super::{own, stopped, Frozen, Mover, Step1};
use crate::control::Finding;
use crate::migrate::files::Files;
use crate::migrate::freeze::FrozenJob;
use crate::migrate::image::ProcessImage;
use crate::migrate::resource::fd::mqueue::{queue_name, unlink_queue};
use crate::migrate::resource::ipc::choose::{choose, refusal, Chosen, Known};
use crate::migrate::resource::ipc::{self, list, namespace, raw, undo, Id, IpcImage, Kind};
use crate::migrate::resource::View;
use crate::migrate::sharing::leave_segments_out;
use crate::syscalls::translate::objects;

impl Mover {
    /// The objects that go along with these processes, the first of which is the job's.
    pub(super) fn choose_ipc(&self, pids: &[i32], frozen: bool) -> Result<Vec<Chosen>, Finding> {
        let root = self.sup.session.root;
        let unknown = |e: String| refusal("objects of the job", &e);
        let common = namespace::name(root);
        for &pid in pids {
            // One that cannot be asked has ended.
            let own = common.as_ref().ok().zip(namespace::name(pid).ok());
            if own.is_some_and(|(common, own)| *common != own) {
                let cause = "it has an IPC namespace of its own (ipc_namespaces(7))";
                return Err(refusal(&format!("process {pid}"), cause));
            }
        }
        if objects::are_own() {
            return own_objects().map_err(|e| unknown(format!("/proc/sysvipc: {e}")));
        }
        let view = View::read_process(root).map_err(|e| unknown(e.to_string()))?;
        let known = Known {
            pids: pids.to_vec(),
            own: self.init.is_some() && !self.shares_ipc().map_err(|e| unknown(e.to_string()))?,
            asked: self.sup.session.handles.ipc().clone(),
            attached: self.sup.job.meta.attached,
            uid: view.number("Uid:") as u32,
            tracer: std::process::id() as i32,
            frozen,
        };
        let look = || {
            let found = namespace::within(root, || {
                let all = list::all().map_err(|e| format!("/proc/sysvipc: {e}"))?;
                Ok(choose(&known, all))
            });
            found.map_err(unknown)?
        };
        // A running job may have attached or detached a segment in between.
        look().or_else(|refused| if frozen { Err(refused) } else { look() })
    }

    /// The job is in this node's own IPC namespace.
    fn shares_ipc(&self) -> std::io::Result<bool> {
        namespace::is_ours(self.sup.session.root)
    }

    /// The values of the chosen semaphores.
    pub(super) fn semaphores(&self, chosen: &[Chosen]) -> Step1<Vec<undo::Asked>> {
        let sets: Vec<&Chosen> = of_kind(chosen, Kind::Semaphores).collect();
        if sets.is_empty() {
            return Ok(Vec::new());
        }
        let values = namespace::within(self.sup.session.root, || {
            let values = sets.iter().map(|set| {
                let (id, count) = (set.listed.perm.id, set.listed.count);
                raw::sem_values(id, count).map_err(|e| format!("semaphore set {id}: {e}"))
            });
            values.collect::<Result<Vec<_>, _>>()
        });
        let values = values.map_err(own)?;
        let asked = |(set, values): (&&Chosen, _)| undo::Asked { id: set.listed.perm.id, values };
        // What may be somebody else's is not asked about.
        let all = sets.iter().zip(values).filter(|(set, _)| !set.perhaps);
        Ok(all.map(asked).collect())
    }

    /// Captures the objects. Pages that travel with them travel no more with `images`.
    pub(super) fn capture_ipc(
        &self,
        chosen: &[Chosen],
        job: &FrozenJob,
        images: &mut [ProcessImage],
    ) -> Step1<IpcImage> {
        let shown = ipc::shown(images, chosen);
        leave_segments_out(images, &shown);
        ipc::by_job(images);
        if chosen.is_empty() {
            return Ok(IpcImage::default());
        }
        let numbers: BTreeMap<i32, i32> = job
            .processes
            .iter()
            .zip(images.iter())
            .map(|(p, image)| (p.pid, image.ids.pid))
            .collect();
        let found =
            namespace::within(self.sup.session.root, || ipc::capture(chosen, &numbers, &shown));
        found.map_err(|e| stopped(11, "VOS-SYSV", e))
    }

    /// Notes what is to be removed here when the job has left: all that nobody else uses.
    pub(super) fn note_left_behind(
        &self,
        chosen: &[Chosen],
        files: &Files,
        frozen: &mut Frozen,
    ) -> std::io::Result<()> {
        if !self.shares_ipc()? {
            return Ok(());
        }
        let sure = chosen.iter().filter(|one| !one.perhaps);
        frozen.ipc = sure.map(|one| (one.listed.kind, one.listed.perm.id)).collect();
        frozen.queues = files.views.objects.iter().filter_map(queue_name).collect();
        Ok(())
    }
}

/// Those of a job that has no namespaces here.
fn own_objects() -> std::io::Result<Vec<Chosen>> {
    let is_own = |one: &list::Listed| objects::to_job(one.kind, one.perm.id).is_some();
    let all = list::all()?.into_iter().filter(is_own);
    Ok(all.map(|listed| Chosen { listed, perhaps: false }).collect())
}

fn of_kind(chosen: &[Chosen], kind: Kind) -> impl Iterator<Item = &Chosen> {
    chosen.iter().filter(move |one| one.listed.kind == kind)
}

/// Removes what a job has left behind here: objects of System V IPC, and POSIX message queues by
/// their names.
pub(super) fn remove(objects: &[Id], queues: &[Vec<u8>]) {
    ipc::remove(objects);
    queues.iter().for_each(|name| unlink_queue(name));
    objects::remove_all();
}
