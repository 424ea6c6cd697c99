use super::*;
use crate::migrate::image::Ids;
use crate::migrate::shares::Shares;
use crate::migrate::tree::{self, Member};

fn anonymous(start: u64, end: u64) -> Heirloom {
    Heirloom { start: start * PAGE, end: end * PAGE, flags: VmFlags::empty(), file: None }
}

fn mapping(start: u64, end: u64) -> Mapping {
    Mapping {
        start: start * PAGE,
        end: end * PAGE,
        prot: 1,
        shared: false,
        offset: 0,
        flags: VmFlags::MAY_WRITE,
        backing: Backing::Anonymous { name: None },
        guards: Vec::new(),
        has_data: true,
    }
}

fn file(name: &str) -> FileId {
    FileId { path: name.into(), dev: 1, ino: 2, size: 3, mtime_ns: 4 }
}

#[test]
fn ranges_are_cut() {
    let all = [(0, 10), (20, 30), (40, 50)];
    assert_eq!(within(&all, &[(5, 25), (28, 41)]), [(5, 10), (20, 25), (28, 30), (40, 41)]);
    assert_eq!(without(&all, &[(5, 25), (28, 41)]), [(0, 5), (25, 28), (41, 50)]);
    assert_eq!(without(&all, &[]), all);
    assert!(within(&all, &[]).is_empty());
    assert_eq!(joined(vec![(40, 50), (0, 10), (8, 20)]), [(0, 20), (40, 50)]);
}

#[test]
fn what_is_of_one_kind_is_kept() {
    let had = [anonymous(10, 20), Heirloom { file: Some((file("a"), PAGE)), ..anonymous(30, 40) }];
    let kept = |m: &Mapping| kept(&had, m, &[file("a"), file("b")]).map(|end| end / PAGE);
    assert_eq!(kept(&mapping(10, 20)), Some(20));
    assert_eq!(kept(&mapping(12, 14)), Some(14));
    assert_eq!(kept(&mapping(15, 25)), Some(20));
    // What lies behind it has to go first.
    assert_eq!(kept(&mapping(15, 35)), None);
    assert_eq!(kept(&mapping(9, 12)), None);
    assert_eq!(kept(&mapping(30, 31)), None);
    assert_eq!(kept(&Mapping { shared: true, ..mapping(10, 20) }), None);
    let flags = VmFlags::NO_RESERVE;
    assert_eq!(kept(&Mapping { flags, ..mapping(10, 20) }), None);
    let of = |index, offset| Mapping {
        backing: Backing::File(index),
        offset: offset * PAGE,
        ..mapping(32, 36)
    };
    assert_eq!(kept(&of(0, 3)), Some(36));
    assert_eq!(kept(&of(0, 2)), None);
    assert_eq!(kept(&of(1, 3)), None);
}

#[test]
fn who_inherits_of_whom() {
    let member = |pid, ppid, sid| Member {
        ids: Ids { pid, ppid, pgid: sid, sid },
        ended: None,
        shares: Shares::default(),
    };
    // 23 lost its parent in the session of 20, and is forked by who leads that.
    let members = [
        member(10, 5, 10),
        member(20, 10, 20),
        member(21, 20, 20),
        member(22, 10, 10),
        member(23, 1, 20),
    ];
    let tree = tree::plan(&members).expect("a plan");
    let lineage = lineage(&tree);
    assert_eq!(lineage, [None, Some(0), Some(1), Some(0), Some(1)]);
    assert_eq!(ancestors(&lineage, 4).collect::<Vec<_>>(), [4, 1, 0]);
    let bequest = |member, mappings| Bequest { member, mappings };
    let own = || vec![anonymous(1, 2), anonymous(2, 4)];
    assert_eq!(check(&[bequest(0, own()), bequest(1, Vec::new())], &lineage), Ok(()));
    assert!(check(&[bequest(1, own()), bequest(0, Vec::new())], &lineage).is_err());
    assert!(check(&[bequest(0, own()), bequest(0, own())], &lineage).is_err());
    assert!(check(&[bequest(5, own())], &lineage).is_err());
    for bad in [anonymous(0, 2), anonymous(3, 3), anonymous(4, 3), anonymous(1, 1 << 36)] {
        assert!(check(&[bequest(0, vec![bad])], &lineage).is_err());
    }
    assert!(check(&[bequest(0, vec![anonymous(1, 3), anonymous(2, 4)])], &lineage).is_err());
}

#[test]
fn the_nearest_page_counts() {
    let mut handed = Handed::new(vec![None, Some(0), Some(1)]);
    handed.add(0, vec![anonymous(10, 20)]);
    handed.add(1, vec![anonymous(30, 40)]);
    for (member, page, hash) in [(0, 10, 1), (0, 11, 2), (1, 11, 3), (1, 30, 4)] {
        handed.note(member, page * PAGE, hash);
    }
    let of = |handed: &Handed, member, page: u64| handed.at(member, page * PAGE);
    assert_eq!(of(&handed, 0, 11), Some(2));
    assert_eq!(of(&handed, 2, 11), Some(3));
    assert_eq!(of(&handed, 2, 10), Some(1));
    assert_eq!(of(&handed, 0, 30), None);
    let memory = MmImage { mappings: vec![mapping(11, 20), mapping(30, 33)], ..MmImage::default() };
    let inherited = handed.inherited(2, &memory);
    assert_eq!(inherited.at(10 * PAGE), None);
    assert_eq!(inherited.at(11 * PAGE), Some(3));
    assert_eq!(inherited.at(30 * PAGE), Some(4));
    handed.refuse(1, 30 * PAGE);
    assert_eq!(handed.inherited(2, &memory).at(30 * PAGE), None);
    let heritage = Heritage {
        mappings: handed.mappings(2),
        pages: vec![(10 * PAGE, 14 * PAGE), (30 * PAGE, 31 * PAGE)],
    };
    assert_eq!(heritage.kept(&memory), [Some(20 * PAGE), None]);
    let data = [(12 * PAGE, 13 * PAGE), (30 * PAGE, 31 * PAGE)];
    let absent = heritage.absent(11 * PAGE, 20 * PAGE, &data);
    assert_eq!(absent, [(11 * PAGE, 12 * PAGE), (13 * PAGE, 14 * PAGE)]);
}
