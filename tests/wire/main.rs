//! What comes over the wire may be anything: decoding it never panics, and never takes more
//! memory than a small multiple of its size.

mod raw;

use proptest::prelude::*;
use proptest::sample::Index;
use serde::de::DeserializeOwned;

use vosrun::control::{Finding, MoveReport, ProcessStatus, Reply, Request, Severity};
use vosrun::ids::{Epoch, JobId, MoveId, NodeId};
use vosrun::migrate::image::{
    Clocks, FdImage, Ids, JobImage, JobInfo, ProcessImage, Restart, ThreadImage, Zombie,
};
use vosrun::migrate::message::{Failure, Hello, Msg, Parcel, Verdict, PROTOCOL};
use vosrun::migrate::resource::creds::User;
use vosrun::migrate::resource::fd::{by_name, BulkId, Object, Slot};
use vosrun::migrate::resource::ipc::undo::Undo;
use vosrun::migrate::resource::ipc::{IpcImage, Perm, Queue, Segment, Set};
use vosrun::migrate::resource::memory::{Backing, FileId, Layout, Mapping, MmImage, SharedObject};
use vosrun::migrate::resource::registers::Registers;
use vosrun::migrate::resource::PartState;
use vosrun::migrate::shares::Shares;
use vosrun::migrate::skeleton::Plan;
use vosrun::migrate::thread_files::Own;
use vosrun::migrate::transport::{encode, Decoder, MAX_HEADER};
use vosrun::migrate::tree::Member;
use vosrun::proxy::stream::Receiver;
use vosrun::proxy::{AwayEnd, AwayState, RelayMsg};
use vosrun::tracer::memory::VmFlags;
use vosrun::tracer::Exit;

/// serde takes at most this at once for a length that it was told (1 MiB), whatever the
/// length; structures are nested a few levels deep.
const UNSEEN: usize = 8 << 20;
/// One byte on the wire is at most a structure of so many bytes in memory.
const PER_BYTE: usize = 512;

fn file(path: &str) -> FileId {
    FileId { path: path.into(), dev: 2049, ino: 77, size: 4096, mtime_ns: 1 << 60 }
}

fn job() -> JobInfo {
    JobInfo {
        id: JobId([7; 16]),
        name: "ctr".into(),
        command: vec!["./counter".into(), "-v".into()],
        home: "a".into(),
        started_ms: 1_700_000_000_000,
        attached: false,
        filtered: true,
    }
}

fn ids() -> Ids {
    Ids { pid: 4711, ppid: 4000, pgid: 4711, sid: 4000 }
}

fn clocks() -> Clocks {
    Clocks { monotonic: 1 << 50, boottime: 1 << 51 }
}

fn mapping(start: u64, end: u64, backing: Backing) -> Mapping {
    let flags = VmFlags::MAY_WRITE;
    let guards = vec![(start, start + 4096)];
    Mapping {
        start,
        end,
        prot: 3,
        shared: false,
        offset: 0,
        flags,
        backing,
        guards,
        has_data: true,
    }
}

fn memory() -> MmImage {
    MmImage {
        locks_future: None,
        mappings: vec![
            mapping(0x40_0000, 0x40_4000, Backing::File(0)),
            mapping(0x50_0000, 0x50_4000, Backing::Anonymous { name: Some("heap".into()) }),
            mapping(0x60_0000, 0x60_4000, Backing::Object(0)),
            mapping(0x7fff_0000_0000, 0x7fff_0000_2000, Backing::Special("[vdso]".into())),
        ],
        files: vec![file("/bin/true"), file("/lib/libc.so.6")],
        objects: vec![SharedObject {
            dev: 1,
            ino: 9,
            name: "memfd:x".into(),
            size: 8192,
            anonymous: true,
            held: false,
            segment: None,
        }],
        rings: Vec::new(),
        layout: Layout::default(),
        auxv: vec![3; 320],
        exe: 0,
        vdso: vec![0x7f; 4096],
        data: vec![(0x50_0000, 0x50_2000)],
    }
}

fn ipc() -> IpcImage {
    let perm = Perm { key: 5, id: 4, mode: 0o600, uid: 1, gid: 2, cuid: 3, cgid: 4 };
    let content = vec![(4096, vec![8; 100])];
    IpcImage {
        segments: vec![Segment { perm, size: 8192, creator: 4711, content }],
        sets: vec![Set { perm, values: vec![1, 2], pids: vec![4711, 0] }],
        queues: vec![Queue {
            perm,
            room: 16384,
            sender: 4711,
            receiver: 0,
            messages: vec![(1, vec![7; 30])],
        }],
    }
}

fn parcel() -> Parcel {
    let part = |name: &str| PartState { name: name.into(), state: vec![1, 2, 3, 4] };
    let thread = |tid| ThreadImage {
        tid,
        registers: Registers { general: vec![5; 27], extended: vec![6; 832], mask: 1 },
        restart: Some(Restart { nr: 35, remaining_ns: Some(5), done: 0 }),
        parts: vec![part("rseq"), part("sigaltstack")],
        filters: Vec::new(),
        files: Some(vec![Own { fd: 3, parked: 9, cloexec: true }]),
    };
    let object =
        |kind: &str| Object { kind: kind.into(), state: vec![9; 40], flags: 2, signals: None };
    let process = ProcessImage {
        shares: Shares::default(),
        ids: ids(),
        memory: memory(),
        table: (0..3).map(|n| Slot { fd: n, object: n as u32, cloexec: false }).collect(),
        locks: Vec::new(),
        parts: vec![part("limits"), part("timers")],
        threads: vec![thread(4711), thread(4712)],
        stopped: None,
        stop_taken: false,
        no_terminal: false,
        continued: false,
        undo: vec![Undo { id: 4, number: 1, amount: -3 }],
    };
    let child = ProcessImage {
        ids: Ids { pid: 4713, ppid: 4711, ..ids() },
        table: vec![Slot { fd: 9, object: 1, cloexec: true }],
        threads: vec![thread(4713)],
        stopped: Some(19),
        ..process.clone()
    };
    let zombie = Zombie { ids: Ids { pid: 4714, ppid: 4713, ..ids() }, status: 0x100 };
    let end = AwayEnd::PipeIn { rx: Receiver::default(), unread: vec![1; 100], capacity: 65536 };
    Parcel {
        image: JobImage {
            job: job(),
            clocks: clocks(),
            nodename: "host-a".into(),
            domainname: String::new(),
            files: FdImage {
                objects: vec![object("regular"), object("pipe"), object("memfd")],
                identities: vec![(1, 2), (3, 4), (5, 6)],
            },
            processes: vec![process, child],
            zombies: vec![zombie],
            ipc: ipc(),
            terminals: Vec::new(),
        },
        relays: vec![AwayState { stream: 1, end }],
        relays_lost: false,
        streams: vec![(1, 1)],
        annotations: vec![(0, 3, vec![1; 30])],
        signals_taken: 5,
    }
}

fn report() -> MoveReport {
    MoveReport {
        id: MoveId([1; 4]),
        job: "ctr".into(),
        job_id: JobId([7; 16]),
        from: "a".into(),
        to: "b".into(),
        epoch: Epoch(4),
        at_ms: 5,
        pause_ms: 3.5,
        total_ms: 70.0,
        parts: vec![("freeze".into(), 1.0)],
        bytes_memory: 1,
        bytes_wire: 2,
        lost: Vec::new(),
        processes: processes(),
    }
}

fn processes() -> Vec<ProcessStatus> {
    let (node, comm) = ("b".to_owned(), "ctr".to_owned());
    vec![ProcessStatus { pid: 1, host_pid: 2, node, comm, threads: 3 }]
}

fn hello() -> Hello {
    Hello {
        id: MoveId([1, 2, 3, 4]),
        job: job(),
        epoch: Epoch(3),
        dry: false,
        translate: false,
        untranslated: Vec::new(),
        connections: 1,
        datagrams: 0,
        source: "a".into(),
        home: (NodeId([3; 32]), "a".into()),
        cpu: vec!["sse2".into(), "avx2".into()],
        boot_id: "d3b07384-d9a0-4e9b-8b1a-1f2e3d4c5b6a".into(),
        kernel: "6.1.0".into(),
        memory: 1 << 30,
        largest_tid: 4712,
        mapped: vec![file("/bin/true"), file("/lib/libc.so.6")],
        open: Vec::new(),
        sockets: Vec::new(),
        affinities: Vec::new(),
        cwds: vec!["/".into()],
        written: vec![1],
        user: Some(User { uid: 1000, gid: 1000 }),
        history: vec![report()],
    }
}

fn messages() -> Vec<Msg> {
    let finding = Finding {
        severity: Severity::Blocker,
        code: "VOS-DEV".into(),
        object: "fd 9".into(),
        cause: "x".into(),
        remedy: "y".into(),
    };
    let plan = Plan {
        members: vec![Member { ids: ids(), ended: None, shares: Shares::default() }],
        nodename: "host-a".into(),
        domainname: String::new(),
        clocks: clocks(),
        terminals: Vec::new(),
        ptys: true,
        user: User { uid: 1000, gid: 1000 },
        bequests: Vec::new(),
        programs: Vec::new(),
    };
    vec![
        Msg::Hello(PROTOCOL, postcard::to_stdvec(&hello()).unwrap()),
        Msg::Verdict(Verdict { findings: vec![finding], mapped: vec![1, 2], ..Verdict::default() }),
        Msg::File { index: 1, hash: [4; 32], mode: 0o755, size: 4096 },
        Msg::Chunk { index: 1, last: true },
        Msg::Prepare(plan),
        Msg::Image { last: true },
        Msg::Unknown(vec![file("/bin/true")]),
        Msg::Bulk { id: BulkId { dev: 1, ino: 2 }, offset: 3 },
        Msg::Pages { process: 1, ranges: vec![(0x1000, 0x3000), (0x5000, 0x6000)] },
        Msg::Done { processes: processes(), resumed_ns: 5, lost: vec!["a lock".into()] },
        Msg::Failed(Failure { code: "VOS-TARGET".into(), text: "no".into() }),
        Msg::Decided { id: MoveId([9; 4]), commit: true },
        Msg::Gone { to: Some((NodeId([5; 32]), "c".into())), epoch: Epoch(9) },
        Msg::Relay(RelayMsg::Data { stream: 1, offset: 7, eof: false }),
        Msg::Exited(Exit::Code(3)),
    ]
}

/// What was done to good bytes.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, u8),
    /// A length of 2⁶³ or so (postcard: up to ten bytes of seven bits each).
    Absurd(Index),
    Random(Vec<u8>),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let one = prop_oneof![
        6 => (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        1 => any::<Index>().prop_map(Damage::Cut),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        2 => any::<Index>().prop_map(Damage::Absurd),
        1 => prop::collection::vec(any::<u8>(), 0..2000).prop_map(Damage::Random),
    ];
    prop::collection::vec(one, 1..6)
}

fn damaged(mut bytes: Vec<u8>, all: &[Damage]) -> Vec<u8> {
    for one in all {
        let len = bytes.len();
        match one {
            Damage::Random(instead) => bytes.clone_from(instead),
            _ if len == 0 => {}
            Damage::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Damage::Cut(at) => bytes.truncate(at.index(len)),
            Damage::Insert(at, byte) => bytes.insert(at.index(len), *byte),
            Damage::Absurd(at) => {
                let at = at.index(len);
                bytes.splice(at..=at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
            }
        }
    }
    bytes
}

/// Decodes, and checks what it has cost.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<T>, TestCaseError> {
    let (value, most) = raw::most_held(|| postcard::from_bytes::<T>(bytes).ok());
    let limit = UNSEEN + PER_BYTE * bytes.len();
    prop_assert!(most <= limit, "{most} bytes held for {} on the wire", bytes.len());
    Ok(value)
}

/// What a receiver does with an image before it makes a process of it.
fn look_at(parcel: &Parcel) {
    if parcel.image.check().is_err() {
        return;
    }
    let objects = &parcel.image.files.objects;
    assert!(!parcel.image.processes.is_empty());
    for process in &parcel.image.processes {
        assert!(!process.threads.is_empty());
        assert!((process.memory.exe as usize) < process.memory.files.len());
        assert!(process.memory.mappings.iter().all(|m| !m.is_empty()));
        assert!(process.table.iter().all(|slot| (slot.object as usize) < objects.len()));
    }
    for object in objects {
        if let Some(kind) = by_name(&object.kind) {
            let _ = kind.bulk_id(&object.state);
        }
    }
}

#[test]
fn good_bytes_are_read() {
    let bytes = postcard::to_stdvec(&parcel()).unwrap();
    let read: Parcel = decode(&bytes).unwrap().unwrap();
    assert_eq!(read.image.check(), Ok(()));
    let hello: Hello = decode(&postcard::to_stdvec(&hello()).unwrap()).unwrap().unwrap();
    assert_eq!(hello.job, job());
    for msg in messages() {
        let bytes = postcard::to_stdvec(&msg).unwrap();
        assert!(decode::<Msg>(&bytes).unwrap().is_some(), "{msg:?}");
    }
}

#[test]
fn images_that_would_be_believed_are_refused() {
    type Spoil = (&'static str, fn(&mut ProcessImage));
    let spoil: [Spoil; 11] = [
        ("no thread", |p| p.threads.clear()),
        ("a descriptor of nothing", |p| p.table[0].object = 3),
        ("the number of another process", |p| p.ids.pid = 4711),
        ("the number of a zombie", |p| p.ids.pid = 4714),
        ("no executable", |p| p.memory.exe = 2),
        ("end before start", |p| p.memory.mappings[0].end = 0x1000),
        ("beyond all addresses", |p| p.memory.mappings[0].end = !0xfff),
        ("no such file", |p| p.memory.mappings[0].backing = Backing::File(9)),
        ("no such object", |p| p.memory.mappings[2].backing = Backing::Object(1)),
        ("a huge object", |p| p.memory.objects[0].size = u64::MAX),
        ("data backwards", |p| p.memory.data = vec![(0x2000, 0x1000)]),
    ];
    for (what, spoil) in spoil {
        let mut parcel = parcel();
        spoil(&mut parcel.image.processes[1]);
        assert!(parcel.image.check().is_err(), "{what}");
    }
    type SpoilJob = (&'static str, fn(&mut JobImage));
    let spoil: [SpoilJob; 3] = [
        ("no process", |job| job.processes.clear()),
        ("an object without an identity", |job| job.files.identities.clear()),
        ("a zombie twice", |job| job.zombies.push(job.zombies[0])),
    ];
    for (what, spoil) in spoil {
        let mut parcel = parcel();
        spoil(&mut parcel.image);
        assert!(parcel.image.check().is_err(), "{what}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_images(all in damage()) {
        let bytes = damaged(postcard::to_stdvec(&parcel()).unwrap(), &all);
        if let Some(parcel) = decode::<Parcel>(&bytes)? {
            look_at(&parcel);
        }
    }

    #[test]
    fn damaged_greetings(all in damage()) {
        decode::<Hello>(&damaged(postcard::to_stdvec(&hello()).unwrap(), &all))?;
    }

    #[test]
    fn damaged_messages(which in any::<Index>(), all in damage()) {
        let messages = messages();
        let good = postcard::to_stdvec(which.get(&messages)).unwrap();
        decode::<Msg>(&damaged(good, &all))?;
    }

    #[test]
    fn damaged_requests_and_replies(all in damage()) {
        let good = postcard::to_stdvec(&Request::Migrate { to: "b".into(), translate: false }).unwrap();
        decode::<Request>(&damaged(good, &all))?;
        let good = postcard::to_stdvec(&Reply::Moved(report())).unwrap();
        decode::<Reply>(&damaged(good, &all))?;
    }

    #[test]
    fn damaged_frames(all in damage(), pieces in prop::collection::vec(1usize..400, 1..10)) {
        let mut good = Vec::new();
        for msg in messages() {
            good.extend(encode(&msg, 5).unwrap());
            good.extend([1; 5]);
        }
        let bytes = damaged(good, &all);
        let (sound, most) = raw::most_held(|| {
            let mut decoder = Decoder::new(MAX_HEADER);
            let mut rest = bytes.as_slice();
            let mut sizes = pieces.iter().cycle();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(*sizes.next().unwrap_or(&1)));
                if decoder.push(piece).is_err() {
                    return false;
                }
                while let Some(frame) = decoder.next_frame() {
                    let _ = frame.decode::<Msg>();
                }
                rest = after;
            }
            true
        });
        let limit = UNSEEN + PER_BYTE * bytes.len();
        prop_assert!(most <= limit, "{most} bytes held for {}, sound {sound}", bytes.len());
    }
}
