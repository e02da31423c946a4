//! Rings spoken by hand, from the description of the protocol alone.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use taskfork::client::Value;
use taskfork::{Client, Error};

use super::raw::{Raw, agreed, frame, greet_as, map, of_call};
use crate::files::send_with;

/// The memory of rings, by the description of the protocol alone.
pub(crate) struct Rings(pub(crate) &'static [AtomicU64]);

pub(crate) const WORDS: usize = 4144;
pub(crate) const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

impl Rings {
    pub(crate) fn new(length: usize, seals: SealFlags) -> (Self, OwnedFd) {
        let file = memfd_create("taskfork-ring", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, length as u64).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        (Self::of(&file), file)
    }

    fn of(file: &OwnedFd) -> Self {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: it is mapped anew, and stays until this process ends.
        #[allow(unsafe_code)]
        let words = unsafe {
            let start = mmap(std::ptr::null_mut(), WORDS * 8, access, MapFlags::SHARED, file, 0);
            std::slice::from_raw_parts(start.unwrap().cast(), WORDS)
        };
        Self(words)
    }

    pub(crate) fn put(&self, half: usize, at: u64, sent: u64, frame: &[u8]) {
        let words = &self.0[half * WORDS / 2..];
        let mut bytes = (sent << 16 | frame.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(frame);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        for (place, word) in (at..).zip(bytes.as_chunks().0) {
            words[24 + place as usize % 2048].store(u64::from_le_bytes(*word), SeqCst);
        }
        words[0].store(at + bytes.len() as u64 / 8, SeqCst);
    }

    /// The record at this word: what was sent before, and its bytes.
    pub(crate) fn record(&self, half: usize, at: usize) -> (u64, Vec<u8>) {
        let words = &self.0[half * WORDS / 2 + 24..];
        let first = words[at].load(SeqCst);
        let length = (first & 0xffff) as usize;
        let rest = words[at + 1..].iter().flat_map(|word| word.load(SeqCst).to_le_bytes());
        (first >> 16, rest.take(length).collect())
    }

    /// Has this frame come again and again through the ring of the worker's messages, behind many that only wake.
    pub(crate) fn fill_for_ever(&self, frame: &[u8], mut goes_on: impl FnMut() -> bool) {
        // Eight such records fill the ring, and stay right however often they are said to be there again.
        let wakes = 2040_usize.saturating_sub(frame.len()) / 4 * 4;
        let record = [vec![0; wakes], frame.to_vec()].concat();
        assert_eq!(1 + record.len().div_ceil(8), 256);
        (0..8).for_each(|place| self.put(1, 256 * place, 0, &record));
        while goes_on() {
            for _ in 0..1000 {
                self.0[WORDS / 2].store(self.0[WORDS / 2 + 8].load(SeqCst) + 2048, SeqCst);
            }
        }
    }

    pub(crate) fn set_awake(&self, half: usize, awake: bool) {
        self.0[half * WORDS / 2 + 16].store(u64::from(awake), SeqCst);
    }

    pub(crate) fn written(&self, half: usize) -> u64 {
        self.0[half * WORDS / 2].load(SeqCst)
    }
}

pub(crate) fn offer() -> Vec<u8> {
    frame(vec![8.into(), map(&[])])
}

/// Offers rings to this worker.
pub(crate) fn offer_to(raw: &Raw) {
    send_with(raw, &offer(), &[Rings::new(WORDS * 8, SEALS).1]);
}

/// A worker that greets and answers calls until the client offers rings, and takes them; with the number of the next call.
pub(crate) fn agree(listener: &UnixListener) -> (Raw, Rings, u64) {
    let mut raw = Raw::accept(listener);
    greet_as(&mut raw, &[("files", 16.into())]);
    let (mut first, mut call) = (agreed(1000), 1);
    let file = loop {
        let (message, file) = crate::files::receive_with(&raw);
        if let Some(file) = file {
            break file;
        }
        assert_eq!(message[4..6], [0x94, 1], "{message:?}");
        first.append(&mut frame(answer(call)));
        call += 1;
        raw.send(&std::mem::take(&mut first));
    };
    raw.send(&offer());
    (raw, Rings::of(&file), call)
}

pub(crate) fn answer(call: u64) -> Vec<Value> {
    vec![1.into(), of_call(call), 1.into()]
}

/// Calls such a worker again and again, until that fails.
pub(crate) async fn call_until_it_fails(client: &Client) -> Error {
    let checkout = client.checkout();
    loop {
        match checkout.call::<u64>("anything", ()).await {
            Ok(answer) => assert_eq!(answer, 1),
            Err(error) => return error,
        }
    }
}
