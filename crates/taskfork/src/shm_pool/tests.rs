//! Two sides of a connection with a queue of messages in each direction.

use std::cell::Cell;
use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::wire::frame::HEADER_LEN;
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits, Segment};
use crate::wire::native::FromClient;

const ROOM: usize = 2 << 20;

thread_local! {
    static FORKS: Cell<u64> = const { Cell::new(0) };
}

/// The number of forks that a test pretends.
pub(super) fn fork_count() -> u64 {
    FORKS.get()
}

fn count_fork() {
    FORKS.set(FORKS.get() + 1);
}

/// Messages that have been sent and not received: frames and their files.
type Line = VecDeque<(Vec<u8>, Vec<OwnedFd>)>;

struct Side {
    shm_pool: ShmPool,
    /// The blobs that have been received, with their first byte at that time.
    blobs: Vec<(SharedBytes, u8)>,
}

impl Side {
    fn new() -> Self {
        Self { shm_pool: ShmPool::new(ROOM, ROOM, sys::effective_user()), blobs: Vec::new() }
    }

    /// Sends a blob. Returns whether it is in a buffer, so that its bytes are not sent.
    fn send(&mut self, bytes: &Bytes, origin: Option<Origin>, line: &mut Line) -> bool {
        let mut message = GatherFrame { bytes: vec![0; HEADER_LEN + 5], ..GatherFrame::default() };
        let backing =
            origin.map_or_else(Default::default, crate::wire::gather_frame::Backing::Shared);
        message.segments.push(Segment { offset: HEADER_LEN + 5, bytes: bytes.clone(), backing });
        let shm_pool = &mut self.shm_pool;
        message
            .fit_with(
                ReceiverLimits { max_frame: usize::MAX, max_blob: usize::MAX, max_files: 16 },
                |bytes, origin, may_add| shm_pool.store(bytes, origin, may_add),
            )
            .unwrap();
        shm_pool.mark_sent(&message.references);
        let mut said = Vec::new();
        shm_pool.write_control(&mut said);
        let file = |file: &_| std::os::fd::AsFd::as_fd(file).try_clone_to_owned().unwrap();
        let files = message.files.iter().map(file).collect();
        let placed = !message.references.is_empty();
        if placed {
            let length = u32::from_le_bytes(*message.bytes.first_chunk().unwrap()) as usize;
            said.extend_from_slice(&message.bytes[..HEADER_LEN + length]);
        }
        line.push_back((said, files));
        placed
    }

    fn say(&mut self, line: &mut Line) {
        let mut said = Vec::new();
        self.shm_pool.write_control(&mut said);
        line.push_back((said, Vec::new()));
    }

    /// Receives the next message and keeps the blobs to which it refers.
    fn receive(&mut self, line: &mut Line) -> Result<(), WireError> {
        let Some((mut frames, mut files)) = line.pop_front() else { return Ok(()) };
        while !frames.is_empty() {
            let length = u32::from_le_bytes(*frames.first_chunk().unwrap()) as usize;
            let rest = frames.split_off(HEADER_LEN + length);
            let FromClient::Shm(said) = FromClient::decode(&frames[HEADER_LEN..])? else {
                panic!("another message");
            };
            self.shm_pool.handle_message(said, &mut files)?;
            frames = rest;
        }
        assert!(files.is_empty());
        for lent in self.shm_pool.take_received()? {
            let lent = lent.into_shared();
            let fill = lent.bytes[0];
            self.blobs.push((lent, fill));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (lent, fill) in &self.blobs {
            prop_assert!(lent.bytes.iter().all(|byte| byte == fill));
        }
        Ok(())
    }
}

#[test]
fn new_memory_is_nobodys_here() {
    let mut shm_pool = ShmPool::new(ROOM, ROOM, sys::effective_user());
    let mut hear = |id, file: &OwnedFd| {
        let said = ShmMessage { new: vec![id], ..ShmMessage::default() };
        shm_pool.handle_message(said, &mut vec![file.try_clone().unwrap()])
    };
    let (_theirs, file) = sys::LocalBuffer::new(4096, 0).unwrap();
    let (_others, other) = sys::LocalBuffer::new(4096, 0).unwrap();
    hear(1, &file).unwrap();
    hear(2, &other).unwrap();
    let same = hear(3, &file).unwrap_err().to_string();
    assert!(same.contains("is that of the number 1"), "{same}");
    let bytes = Bytes::from(vec![1; 100_000]);
    let own = (0..3).find_map(|_| shm_pool.store(&bytes, None, true)).unwrap();
    let said = ShmMessage { new: vec![4], ..ShmMessage::default() };
    let file = own.new_file.unwrap().try_clone().unwrap();
    let own = shm_pool.handle_message(said, &mut vec![file]).unwrap_err().to_string();
    assert!(own.contains("is the receiver's own"), "{own}");
}

#[derive(Debug, Clone)]
enum Step {
    /// Sends a new blob of this number of KiB.
    Send(usize),
    /// Sends a received blob.
    SendBack(usize),
    Drop(usize),
    Receive,
    Rest,
    Fork,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (65usize..600).prop_map(Step::Send),
        2 => any::<usize>().prop_map(Step::SendBack),
        4 => any::<usize>().prop_map(Step::Drop),
        6 => Just(Step::Receive),
        1 => Just(Step::Rest),
        1 => Just(Step::Fork),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_has_come_stays_as_it_is(
        steps in proptest::collection::vec((any::<bool>(), step()), 1..120),
    ) {
        let (mut sides, mut lines) = ([Side::new(), Side::new()], [Line::new(), Line::new()]);
        let mut fill = 0_u8;
        for (second, step) in steps {
            let (here, there) = (usize::from(second), usize::from(!second));
            let side = &mut sides[here];
            match step {
                Step::Send(kib) => {
                    fill = fill.wrapping_add(1);
                    side.send(&vec![fill; kib << 10].into(), None, &mut lines[there]);
                }
                Step::SendBack(which) if !side.blobs.is_empty() => {
                    let (lent, _) = side.blobs[which % side.blobs.len()].clone();
                    side.send(&lent.bytes, lent.origin, &mut lines[there]);
                }
                Step::Drop(which) if !side.blobs.is_empty() => {
                    let which = which % side.blobs.len();
                    side.blobs.swap_remove(which);
                }
                Step::SendBack(_) | Step::Drop(_) => {}
                Step::Receive => side.receive(&mut lines[here]).unwrap(),
                Step::Rest => {
                    side.shm_pool.trim();
                    side.say(&mut lines[there]);
                }
                // Only counts a fork: bytes that a child reads must not change either.
                Step::Fork => count_fork(),
            }
            sides[0].check()?;
            sides[1].check()?;
        }
    }
}

/// Sends blobs until one is in a buffer.
fn warm(from: &mut Side, to: &mut Side, line: &mut Line) {
    let bytes = Bytes::from(vec![1; 1 << 20]);
    for sent in 1.. {
        assert!(sent < 20, "there is no memory for it yet");
        let placed = from.send(&bytes, None, line);
        to.receive(line).unwrap();
        if placed {
            to.blobs.clear();
            return;
        }
    }
}

#[test]
fn memory_is_used_again_once_it_is_not_read_any_more() {
    let (mut here, mut there) = (Side::new(), Side::new());
    let (mut to, mut back) = (Line::new(), Line::new());
    warm(&mut here, &mut there, &mut to);
    let mut ids = Vec::new();
    for fill in 2..10 {
        there.say(&mut back);
        here.receive(&mut back).unwrap();
        assert!(here.send(&vec![fill; 1 << 20].into(), None, &mut to));
        there.receive(&mut to).unwrap();
        ids.extend(there.blobs.drain(..).map(|(lent, _)| lent.origin.unwrap().id));
    }
    assert!(ids.iter().all(|&id| id == ids[0]), "{ids:?}");
    // While the buffer is read, a second one is made, and then there is no room.
    assert!(here.send(&vec![20; 1 << 20].into(), None, &mut to));
    assert!(!here.send(&vec![21; 1 << 20].into(), None, &mut to));
    there.receive(&mut to).unwrap();
    there.receive(&mut to).unwrap();
    there.blobs.clear();
    there.say(&mut back);
    here.receive(&mut back).unwrap();
    assert!(here.send(&vec![22; 1 << 20].into(), None, &mut to));
    assert!(here.send(&vec![23; 1 << 20].into(), None, &mut to));
}

#[test]
fn what_goes_back_is_not_copied() {
    let (mut here, mut there) = (Side::new(), Side::new());
    let (mut to, mut back) = (Line::new(), Line::new());
    warm(&mut here, &mut there, &mut to);
    assert!(here.send(&vec![5; 1 << 20].into(), None, &mut to));
    there.receive(&mut to).unwrap();
    let (lent, _) = there.blobs.pop().unwrap();
    let (bytes, origin) = (lent.bytes.clone(), lent.origin);
    assert!(there.send(&bytes, origin, &mut back));
    assert!(there.shm_pool.local.is_empty());
    here.receive(&mut back).unwrap();
    let (lent, fill) = here.blobs.pop().unwrap();
    assert!(lent.origin.unwrap().is_local && fill == 5 && lent.bytes.len() == 1 << 20);
    // The blob can be sent again while it exists.
    assert!(here.send(&lent.bytes, lent.origin, &mut to));
    there.receive(&mut to).unwrap();
    assert_eq!(there.blobs.pop().unwrap().0.origin.unwrap().id, origin.unwrap().id);
}

#[test]
fn a_copy_stays_as_it_was_when_the_other_side_writes_to_its_buffer() {
    let (mut here, mut there) = (Side::new(), Side::new());
    there.shm_pool = there.shm_pool.copying(true);
    let (mut to, mut back) = (Line::new(), Line::new());
    warm(&mut here, &mut there, &mut to);
    there.say(&mut back);
    here.receive(&mut back).unwrap();
    assert!(here.send(&vec![5; 1 << 20].into(), None, &mut to));
    there.receive(&mut to).unwrap();
    let (copy, _) = there.blobs.pop().unwrap();
    // The other side may use the buffer again at once, although the copy lives.
    there.say(&mut back);
    here.receive(&mut back).unwrap();
    assert!(here.send(&vec![6; 1 << 20].into(), None, &mut to));
    assert!(copy.bytes.len() == 1 << 20 && copy.bytes.iter().all(|&byte| byte == 5));
    assert!(copy.origin.is_none());
    assert_eq!(here.shm_pool.local.ids().len(), 1);
    // It goes back in a buffer of this side.
    there.receive(&mut to).unwrap();
    warm(&mut there, &mut here, &mut back);
    assert!(there.send(&copy.bytes, copy.origin, &mut back));
    here.receive(&mut back).unwrap();
    assert!(!here.blobs.pop().unwrap().0.origin.unwrap().is_local);
}

#[test]
fn the_memory_of_a_copy_is_used_again_when_nobody_reads_it() {
    let (mut here, mut there) = (Side::new(), Side::new());
    there.shm_pool = there.shm_pool.copying(true);
    let (mut to, mut back) = (Line::new(), Line::new());
    warm(&mut here, &mut there, &mut to);
    there.blobs.clear();
    let mut copy_of = |byte| {
        there.say(&mut back);
        here.receive(&mut back).unwrap();
        assert!(here.send(&vec![byte; 1 << 20].into(), None, &mut to));
        there.receive(&mut to).unwrap();
        there.blobs.pop().unwrap().0.bytes
    };
    let first = copy_of(1);
    let place = first.as_ptr();
    let second = copy_of(2);
    assert!(second.as_ptr() != place);
    assert!(first.iter().all(|&byte| byte == 1) && second.iter().all(|&byte| byte == 2));
    drop(first);
    // It would be there if the memory were free.
    let other = vec![9; 1 << 20];
    let third = copy_of(3);
    assert!(third.as_ptr() == place && other.as_ptr() != place);
    assert!(second.iter().all(|&byte| byte == 2) && third.iter().all(|&byte| byte == 3));
}

#[test]
fn bytes_are_copied_where_they_are_wanted_and_their_buffer_is_used_again() {
    let (mut here, mut there) = (Side::new(), Side::new());
    there.shm_pool = there.shm_pool.copying(true);
    let (mut to, mut back) = (Line::new(), Line::new());
    warm(&mut here, &mut there, &mut to);
    for fill in 5..8 {
        there.say(&mut back);
        here.receive(&mut back).unwrap();
        assert!(here.send(&vec![fill; 1 << 20].into(), None, &mut to));
        let (frame, mut files) = to.pop_front().unwrap();
        let FromClient::Shm(said) = FromClient::decode(&frame[HEADER_LEN..]).unwrap() else {
            panic!("another message");
        };
        there.shm_pool.handle_message(said, &mut files).unwrap();
        let received = there.shm_pool.take_received().unwrap().pop().unwrap();
        let mut copy = vec![std::mem::MaybeUninit::uninit(); received.len()];
        received.copy_to(&mut copy);
        assert!(received.into_shared().bytes.iter().all(|&byte| byte == fill));
        assert_eq!(here.shm_pool.local.ids().len(), 1);
    }
}

#[test]
fn there_is_memory_for_a_result_when_there_would_be_some_for_its_bytes() {
    let mut shm_pool = ShmPool::new(ROOM, ROOM, sys::effective_user());
    let bytes = Bytes::from(vec![1; 100_000]);
    for _ in 0..2 {
        assert!(shm_pool.alloc_for_copy(bytes.len()).is_none());
        assert!(shm_pool.store(&bytes, None, true).is_none());
    }
    let mut memory = shm_pool.alloc_for_copy(bytes.len()).unwrap();
    memory.bytes_mut().copy_from_slice(&bytes);
    let SharedBytes { bytes: there, origin } = memory.freeze();
    let placed = shm_pool.store(&there, origin, true).unwrap();
    assert_eq!(placed.bytes.as_ptr(), there.as_ptr());
    assert!(shm_pool.alloc_for_copy(ROOM + 1).is_none());
}

#[test]
fn many_references_to_one_buffer_are_copied_once() {
    let (mut here, mut there) = (Side::new(), Side::new());
    there.shm_pool = there.shm_pool.copying(true);
    let mut to = Line::new();
    warm(&mut here, &mut there, &mut to);
    assert!(here.send(&vec![5; 1 << 20].into(), None, &mut to));
    let id = here.shm_pool.local.ids()[0];
    there.receive(&mut to).unwrap();
    let place = |length| BufferRef { owner: BufferOwner::Sender, id, length };
    let uses = (1..=MAX_BUFFER_REFS).map(place).collect();
    let said = ShmMessage { uses, ..ShmMessage::default() };
    there.shm_pool.handle_message(said, &mut Vec::new()).unwrap();
    let received = there.shm_pool.take_received().unwrap();
    let copies: Vec<_> = received.into_iter().map(ReceivedBytes::into_shared).collect();
    let first = copies[0].bytes.as_ptr();
    for (index, copy) in copies.iter().enumerate() {
        assert_eq!((copy.bytes.as_ptr(), copy.bytes.len()), (first, index + 1));
    }
}

#[test]
fn what_a_child_may_read_is_not_written_to() {
    let (mut here, mut there) = (Side::new(), Side::new());
    let (mut to, mut back) = (Line::new(), Line::new());
    warm(&mut here, &mut there, &mut to);
    assert!(here.send(&vec![5; 1 << 20].into(), None, &mut to));
    there.receive(&mut to).unwrap();
    let first = there.blobs[0].0.origin.unwrap().id;
    count_fork();
    there.blobs.clear();
    there.say(&mut back);
    here.receive(&mut back).unwrap();
    here.send(&vec![6; 1 << 20].into(), None, &mut to);
    there.receive(&mut to).unwrap();
    assert!(there.blobs.iter().all(|(lent, _)| lent.origin.unwrap().id != first));
    assert!(!there.shm_pool.remote.has_id(first), "the owner has not said that it is gone");
}

#[test]
fn what_its_owner_gives_up_does_not_go_back() {
    let (mut here, mut there) = (Side::new(), Side::new());
    let (mut to, mut back) = (Line::new(), Line::new());
    warm(&mut here, &mut there, &mut to);
    assert!(here.send(&vec![5; 1 << 20].into(), None, &mut to));
    there.receive(&mut to).unwrap();
    assert!(there.send(&there.blobs[0].0.bytes.clone(), there.blobs[0].0.origin, &mut back));
    here.receive(&mut back).unwrap();
    // A reference has been sent when the other side asks not to use the buffer again.
    let (lent, _) = here.blobs[0].clone();
    assert!(here.send(&lent.bytes, lent.origin, &mut to));
    there.blobs.clear();
    count_fork();
    there.say(&mut back);
    there.receive(&mut to).unwrap();
    let (lent, _) = there.blobs[0].clone();
    there.send(&lent.bytes, lent.origin, &mut back);
    here.receive(&mut back).unwrap();
    here.receive(&mut back).unwrap();
}

#[test]
fn at_rest_there_is_no_memory() {
    let (mut here, mut there) = (Side::new(), Side::new());
    let (mut to, mut back) = (Line::new(), Line::new());
    warm(&mut here, &mut there, &mut to);
    there.shm_pool.trim();
    there.say(&mut back);
    here.receive(&mut back).unwrap();
    here.say(&mut to);
    there.receive(&mut to).unwrap();
    // This side has trimmed before it knew of the released buffer, so it trims again.
    here.shm_pool.trim_again().unwrap();
    here.say(&mut to);
    there.receive(&mut to).unwrap();
    assert!(here.shm_pool.is_empty() && there.shm_pool.is_empty());
}

#[test]
fn what_a_message_refers_to_is_kept_until_it_is_sent() {
    let (mut here, mut there) = (Side::new(), Side::new());
    let (mut to, mut back) = (Line::new(), Line::new());
    warm(&mut here, &mut there, &mut to);
    there.say(&mut back);
    here.receive(&mut back).unwrap();
    let placed = here.shm_pool.store(&vec![7; 1 << 20].into(), None, true).unwrap();
    // The other side trims before the message is sent.
    there.shm_pool.trim();
    there.say(&mut back);
    here.receive(&mut back).unwrap();
    here.say(&mut to);
    there.receive(&mut to).unwrap();
    let mut message = Vec::new();
    ShmMessage::of(&[placed]).put(&mut message);
    to.push_back((message, Vec::new()));
    there.receive(&mut to).unwrap();
    assert_eq!(there.blobs.len(), 1);
}

#[test]
fn what_was_not_lent_cannot_be_referred_to() {
    let (mut here, mut there) = (Side::new(), Side::new());
    let mut to = Line::new();
    warm(&mut here, &mut there, &mut to);
    assert!(here.send(&vec![5; 1 << 20].into(), None, &mut to));
    there.receive(&mut to).unwrap();
    let known = there.blobs[0].0.origin.unwrap().id;
    let uses = |owner, id, length| ShmMessage {
        uses: vec![BufferRef { owner, id, length }],
        ..ShmMessage::default()
    };
    let mut hears = |said| there.shm_pool.handle_message(said, &mut Vec::new());
    assert!(hears(uses(BufferOwner::Sender, known, 1 << 20)).is_ok());
    assert!(hears(uses(BufferOwner::Sender, known, 4 << 20)).is_err());
    assert!(hears(uses(BufferOwner::Sender, known + 9, 1)).is_err());
    assert!(hears(uses(BufferOwner::Receiver, known, 1)).is_err());
    assert!(hears(ShmMessage { new: vec![7], ..ShmMessage::default() }).is_err());
    assert!(there.shm_pool.take_received().is_ok_and(|uses| uses.len() == 1));
    let place = BufferRef { owner: BufferOwner::Sender, id: known, length: 1 };
    let many = |count| ShmMessage { uses: vec![place; count], ..ShmMessage::default() };
    assert!(there.shm_pool.handle_message(many(MAX_BUFFER_REFS + 1), &mut Vec::new()).is_err());
    assert!(there.shm_pool.handle_message(many(MAX_BUFFER_REFS), &mut Vec::new()).is_ok());
    assert!(there.shm_pool.handle_message(many(1), &mut Vec::new()).is_err());
    let free = |times| ShmMessage { free: vec![(known, times)], ..ShmMessage::default() };
    here.shm_pool.handle_message(free(100), &mut Vec::new()).unwrap();
    assert!(here.shm_pool.take_received().is_err());
}

#[test]
fn no_more_is_mapped_than_was_agreed() {
    let mut side = Side::new();
    let offer = |id, length| {
        let (_, file) = sys::LocalBuffer::new(length, 0).unwrap();
        (ShmMessage { new: vec![id], ..ShmMessage::default() }, vec![file])
    };
    let mut hear = |id, length| {
        let (said, mut files) = offer(id, length);
        side.shm_pool.handle_message(said, &mut files)
    };
    assert!(hear(1, 1 << 20).is_ok());
    assert!(hear(1, 4096).is_err());
    assert!(hear(2, ROOM).is_err());
    for id in 2..=16 {
        assert!(hear(id, 4096).is_ok());
    }
    assert!(hear(17, 4096).is_err());
}
