//! Files without a name: unlinked while open, or made with O_TMPFILE (open(2), unlink(2)).
//!
//! The content travels apart (see `content`). At the target the file is made with O_TMPFILE
//! in the folder it had, else in the folder for temporary files. A file that lost the name
//! it was opened by but has others (st_nlink > 0) is refused: a copy would part from them.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;

use super::content::{as_path, Carried};
use super::{failed, regular, CaptureCx, FdError, FdView};

pub const NAME: &str = "deleted";

#[derive(Serialize, Deserialize)]
pub(super) struct Traits {
    /// The name it had; only its folder counts.
    path: Vec<u8>,
}

pub(super) struct Deleted;

impl Carried for Deleted {
    const NAME: &'static str = NAME;
    const CAPABILITIES: &'static [Capability] = &[
        Capability::moves(Descriptors, "deleted", "deleted files, O_TMPFILE: up to 1 GiB"),
        Capability::refused(
            Descriptors,
            "file-unlinked",
            "files that lost the name they were opened by, but have others",
            "VOS-FILE-UNLINKED",
        ),
    ];
    type Traits = Traits;

    fn is(view: &FdView) -> bool {
        view.file_type() == libc::S_IFREG && !regular::has_its_name(view)
    }

    fn traits(view: &FdView, _cx: &dyn CaptureCx) -> Result<Traits, FdError> {
        if view.nlink > 0 {
            let cause = "the name it was opened by is gone or may not be looked up, but the file has a name";
            let remedy = "let the program close it, or move the file back to that name";
            return Err(view.refuse("VOS-FILE-UNLINKED", cause, remedy));
        }
        Ok(Traits { path: view.path().map_err(view.failed("read the link"))? })
    }

    fn empty(traits: &Traits) -> Result<File, FdError> {
        let tmp = std::env::temp_dir();
        let folder = as_path(&traits.path).parent().unwrap_or(&tmp);
        let made = nameless(folder).or_else(|_| nameless(&tmp));
        made.map_err(failed(format!("make a file without name in {}", tmp.display())))
    }
}

/// O_TMPFILE, or made and unlinked where the file system lacks it.
fn nameless(folder: &Path) -> std::io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(folder)
        .or_else(|_| tempfile::tempfile_in(folder))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::super::testing::{move_bulk, refusal, Here, Restored};
    use super::super::FdKind;
    use super::*;

    #[test]
    fn content_holes_mode_and_position_come_back() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("gone");
        let mut file =
            File::options().read(true).write(true).create_new(true).mode(0o400).open(&path);
        let file = file.as_mut().expect("file");
        std::fs::remove_file(&path).expect("unlink");
        file.write_all(b"first").expect("write");
        file.write_all_at(b"last", 3 << 20).expect("write");
        file.set_len(8 << 20).expect("truncate");
        let here = Here::of(&[&*file]);
        let object = here.capture(&*file);
        assert_eq!(object.kind, "deleted");
        assert_eq!(file.stream_position().expect("position"), 5, "capture moved the position");

        let mut restored = Restored::default();
        move_bulk(&here.view(&*file), &object, &mut restored, 0);
        let mut copy = File::from(restored.restore(&object, 0));
        restored.finish(&object, &copy);
        assert_eq!(copy.stream_position().expect("position"), 5);
        let meta = copy.metadata().expect("stat");
        assert_eq!((meta.len(), meta.nlink(), meta.mode() & 0o7777), (8 << 20, 0, 0o400));
        assert!(meta.blocks() < 2048, "holes were filled");
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for (file, text) in [(file, &mut old), (&mut copy, &mut new)] {
            file.seek(SeekFrom::Start(0)).expect("seek");
            file.read_to_end(text).expect("read");
        }
        assert!(old == new);
    }

    #[test]
    fn two_descriptions_of_one_file_stay_one_file() {
        let file = nameless(&std::env::temp_dir()).expect("file");
        file.write_all_at(b"x", 0).expect("write");
        let again = File::open(super::super::testing::proc_self(&file)).expect("open");
        let here = Here::of(&[&file, &again]);
        let objects = [here.capture(&file), here.capture(&again)];
        let mut restored = Restored::default();
        let vessel = move_bulk(&here.view(&file), &objects[0], &mut restored, 0);
        assert_eq!(
            Deleted.bulk_id(&objects[1].state).ok(),
            Deleted.bulk_id(&objects[0].state).ok()
        );
        restored.provide(1, vessel);
        let writer = File::from(restored.restore(&objects[0], 0));
        let reader = File::from(restored.restore(&objects[1], 1));
        writer.write_all_at(b"y", 0).expect("write");
        let mut byte = [0];
        reader.read_exact_at(&mut byte, 0).expect("read");
        assert_eq!(byte, *b"y");
        assert!(reader.write_all_at(b"z", 0).is_err());
    }

    #[test]
    fn missing_content_and_other_names_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("one");
        let mut file = File::create_new(&path).expect("file");
        std::fs::hard_link(&path, dir.path().join("two")).expect("link");
        std::fs::remove_file(&path).expect("unlink");
        assert_eq!(refusal(&file), "VOS-FILE-UNLINKED");
        std::fs::remove_file(dir.path().join("two")).expect("unlink");
        file.write_all(b"x").expect("write");
        let object = Here::of(&[&file]).capture(&file);
        assert!(Restored::default().try_restore(&object, 0).is_err());
    }
}
