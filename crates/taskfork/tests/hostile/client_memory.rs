//! Clients that pass descriptors, lend memory and offer rings as they must not.

use rustix::fs::SealFlags;
use taskfork::client::Value;

use crate::case::Expected::{Harmless, Refused, Served};
use crate::case::Kind::{DevZero, Folder, Memory, Socket};
use crate::case::Step::{Receive, Reset, Send, SendWith};
use crate::case::{BLOB_SEALS, BUFFER_SEALS, Case, Kind, RING_SEALS, Step, case};
use crate::client_cases::greeted_with;
use crate::message::{PREAMBLE, announce, call, client_hello, frame, frame_meta, list, many, map};

/// After a first call, in front of whose answer the worker agrees to share memory.
fn lending(more: Vec<Step>) -> Vec<Step> {
    let mut steps = vec![Send(call("nothing", &[])), Receive, Receive];
    steps.extend(more);
    greeted_with(&[("files", 16.into()), ("lent", (64 << 20).into())], steps)
}

/// A reference of this type to the descriptor or use of this number.
fn reference(kind: i8, index: u32) -> Value {
    Value::Ext(kind, index.to_be_bytes().to_vec())
}

fn lends(meta: &[(&str, Value)]) -> Vec<u8> {
    frame(&[7.into(), map(meta)])
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = descriptors();
    cases.extend(memory());
    cases.extend(rings());
    cases
}

fn descriptors() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, steps: Vec<Step>, end| cases.push(case(name, steps, end));
    let open = |index| call("nothing", &[reference(2, index)]);
    let echo = |index| call("echo", &[reference(1, index)]);
    let with = |count, said: Vec<u8>| [announce(count), said].concat();

    for (name, kind) in [
        ("a socket", Socket),
        ("/dev/zero", DevZero),
        ("a folder", Folder),
        ("memory that is not sealed", Memory(4096, SealFlags::empty())),
        ("memory that may shrink", Memory(4096, SealFlags::GROW.union(SealFlags::WRITE))),
        ("memory that may grow", Memory(4096, SealFlags::SHRINK.union(SealFlags::WRITE))),
        ("memory that may be written to", Memory(4096, RING_SEALS)),
        ("memory that is lent", Memory(4096, BUFFER_SEALS)),
        ("memory of no bytes", Memory(0, BLOB_SEALS)),
        ("sparse memory of 400 MiB", Memory(400 << 20, BLOB_SEALS)),
        ("sparse memory of 1 TiB", Memory(1 << 40, BLOB_SEALS)),
    ] {
        // Sealed memory is refused where it is too long; other files are errors of the call.
        let end = if matches!(kind, Memory(1.., BLOB_SEALS)) { Refused } else { Served };
        add(
            &format!("bytes that are {name}"),
            lending(vec![SendWith(with(1, echo(0)), vec![kind])]),
            end,
        );
        add(
            &format!("file that is {name}"),
            lending(vec![SendWith(with(1, open(0)), vec![kind]), Receive]),
            Served,
        );
    }
    let nothing = || call("nothing", &[]);
    add(
        "descriptor that nothing tells of",
        lending(vec![SendWith(nothing(), vec![Socket])]),
        Served,
    );
    add("announced and not there", lending(vec![Send(with(1, open(0)))]), Refused);
    add(
        "two announced, one there",
        lending(vec![SendWith(with(2, open(0)), vec![Socket])]),
        Refused,
    );
    add(
        "announced for a message without any",
        lending(vec![SendWith(with(1, nothing()), vec![Socket]), Receive]),
        Served,
    );
    add(
        "announced twice",
        lending(vec![SendWith([announce(1), announce(1), open(0)].concat(), vec![Socket])]),
        Refused,
    );
    for count in [17, 64, 65, 1000] {
        // Those that come with one piece, but for the first 16, are closed by the kernel.
        let files = vec![DevZero; count];
        add(
            &format!("{count} that nothing tells of"),
            lending(vec![SendWith(nothing(), files.clone())]),
            if count > 250 { Refused } else { Served },
        );
        add(
            &format!("{count} announced"),
            lending(vec![SendWith(with(count as u64, open(0)), files)]),
            Refused,
        );
    }
    for count in [u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
        add(
            &format!("{count} announced and none there"),
            lending(vec![Send(with(count, open(0)))]),
            Refused,
        );
    }
    let hello = [PREAMBLE, &client_hello(&[("files", 16.into())])].concat();
    // The server reads the hello for the worker, and must not receive these descriptors.
    add("1600 before the hello", vec![SendWith(hello.clone(), vec![DevZero; 1600])], Harmless);
    add("one with the preamble", vec![SendWith(hello, vec![DevZero])], Harmless);
    add(
        "a number that is none of those that came",
        lending(vec![SendWith(with(1, open(7)), vec![Socket]), Receive]),
        Served,
    );
    add(
        "the same one twice",
        lending(vec![
            SendWith(with(1, call("echo", &[reference(2, 0), reference(2, 0)])), vec![Socket]),
            Receive,
        ]),
        Served,
    );
    add(
        "an unknown type of reference",
        lending(vec![SendWith(with(1, call("echo", &[reference(9, 0)])), vec![Socket]), Receive]),
        Served,
    );
    let short = Value::Ext(2, vec![0]);
    add(
        "a reference that is too short",
        lending(vec![SendWith(with(1, call("echo", &[short])), vec![Socket]), Receive]),
        Served,
    );
    let files = greeted_with(&[], vec![SendWith(with(1, open(0)), vec![Socket]), Receive]);
    add("from a client that takes none itself", files, Served);
    add(
        "announced and reset",
        lending(vec![SendWith(announce(3), vec![Socket; 3]), Reset]),
        Harmless,
    );
    cases
}

fn memory() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, steps: Vec<Step>, end| cases.push(case(name, steps, end));
    let new = |ids: &[u64]| ("new", Value::Array(ids.iter().map(|&id| id.into()).collect()));
    let uses = |uses: &[(bool, u64, u64)]| {
        let one = |&(whose, id, length): &(bool, u64, u64)| {
            list(&[Value::Boolean(whose), id.into(), length.into()])
        };
        ("uses", Value::Array(uses.iter().map(one).collect()))
    };
    let free = |id: u64, times: u64| ("free", list(&[list(&[id.into(), times.into()])]));
    let good = Memory(1 << 20, BUFFER_SEALS);
    let echo = || call("echo", &[reference(3, 0)]);
    let lent = |meta: &[(&str, Value)], kind: Kind| {
        lending(vec![SendWith([lends(meta), echo()].concat(), vec![kind])])
    };

    for (name, kind) in [
        ("a socket", Socket),
        ("/dev/zero", DevZero),
        ("a folder", Folder),
        ("not sealed", Memory(1 << 20, SealFlags::empty())),
        ("sealed against all", Memory(1 << 20, BLOB_SEALS)),
        ("of no bytes", Memory(0, BUFFER_SEALS)),
        ("of 1 TiB", Memory(1 << 40, BUFFER_SEALS)),
    ] {
        let steps = lent(&[new(&[1]), uses(&[(false, 1, 4096)])], kind);
        add(&format!("lent memory is {name}"), steps, Refused);
    }
    add(
        "good memory is lent",
        lending(vec![
            SendWith([lends(&[new(&[1]), uses(&[(false, 1, 4096)])]), echo()].concat(), vec![good]),
            Receive,
        ]),
        Served,
    );
    add("the same number is new twice", lent(&[new(&[1, 1])], good), Refused);
    add("more is new than has come", lent(&[new(&[1, 2, 3])], good), Refused);
    add(
        "a use of an unknown number",
        lending(vec![Send([lends(&[uses(&[(false, 9, 1)])]), echo()].concat())]),
        Refused,
    );
    add(
        "a use of the worker's that there is not",
        lending(vec![Send([lends(&[uses(&[(true, 1, 1)])]), echo()].concat())]),
        Refused,
    );
    add(
        "a use that is too long",
        lent(&[new(&[1]), uses(&[(false, 1, (1 << 20) + 1)])], good),
        Refused,
    );
    add(
        "a use of 2^63 minus 1 bytes",
        lent(&[new(&[1]), uses(&[(false, 1, u64::MAX >> 1)])], good),
        Refused,
    );
    add("a use of no bytes", lent(&[new(&[1]), uses(&[(false, 1, 0)])], good), Served);
    let many_uses: Vec<_> = (0..1025).map(|_| (false, 1, 1)).collect();
    add("1025 uses", lent(&[new(&[1]), uses(&many_uses)], good), Refused);
    let twice =
        [lends(&[new(&[1]), uses(&[(false, 1, 1)])]), lends(&[uses(&[(false, 1, 1)])]), echo()]
            .concat();
    add("uses of one message said twice", lending(vec![SendWith(twice, vec![good])]), Refused);
    add("a reference to no use", lending(vec![Send(echo()), Receive]), Served);
    add(
        "freed and never lent",
        lending(vec![Send([lends(&[free(1, 1)]), echo()].concat())]),
        Refused,
    );
    add(
        "freed 2^63 minus 1 times",
        lending(vec![Send([lends(&[free(1, u64::MAX >> 1)]), echo()].concat())]),
        Refused,
    );
    add(
        "gone and never there",
        lending(vec![Send(lends(&[("gone", list(&[7.into()]))]))]),
        Refused,
    );
    add(
        "unwanted and never there",
        lending(vec![Send(lends(&[("unwanted", list(&[7.into()]))]))]),
        Refused,
    );
    for key in ["new", "uses", "free", "gone", "unwanted"] {
        let said = frame_meta(7, key, &many(1_000_000, &[0]));
        add(&format!("a million of {key}"), lending(vec![Send(said)]), Refused);
    }
    add("idle from a client", lending(vec![Send(lends(&[("idle", true.into())]))]), Served);
    add(
        "lent where nothing was agreed",
        greeted_with(&[], vec![SendWith([lends(&[new(&[1])]), echo()].concat(), vec![good])]),
        Refused,
    );
    let seventeen: Vec<u64> = (1..=17).collect();
    add(
        "17 pieces of memory",
        lending(vec![SendWith(lends(&[new(&seventeen)]), vec![Memory(4096, BUFFER_SEALS); 17])]),
        Refused,
    );
    cases
}

fn rings() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, steps: Vec<Step>, end| cases.push(case(name, steps, end));
    let offer = || [announce(1), frame(&[8.into(), map(&[])])].concat();
    let size = 33_152;
    for (name, kind) in [
        ("of a socket", Socket),
        ("of /dev/zero", DevZero),
        ("of a folder", Folder),
        ("of no bytes", Memory(0, RING_SEALS)),
        ("a byte too short", Memory(size - 1, RING_SEALS)),
        ("a page too long", Memory(size + 4096, RING_SEALS)),
        ("of 1 TiB", Memory(1 << 40, RING_SEALS)),
        ("that may shrink", Memory(size, SealFlags::GROW)),
        ("that nobody can write to", Memory(size, BLOB_SEALS)),
    ] {
        add(&format!("rings {name}"), lending(vec![SendWith(offer(), vec![kind])]), Refused);
    }
    let good = Memory(size, RING_SEALS);
    add(
        "rings twice",
        lending(vec![SendWith(offer(), vec![good]), Receive, SendWith(offer(), vec![good])]),
        Refused,
    );
    add("rings without memory", lending(vec![Send(frame(&[8.into(), map(&[])]))]), Refused);
    add(
        "rings with two pieces of memory",
        lending(vec![SendWith(
            [announce(2), frame(&[8.into(), map(&[])])].concat(),
            vec![good, good],
        )]),
        Refused,
    );
    add(
        "rings that nobody agreed on",
        greeted_with(&[], vec![SendWith(offer(), vec![good])]),
        Refused,
    );
    add("rings and a reset", lending(vec![SendWith(offer(), vec![good]), Reset]), Harmless);
    cases
}
