//! Long bytes that are copied into memory that both sides have, which is used again and again.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::unistd::{ForkResult, fork};
use serde_bytes::ByteBuf;
use taskfork::client::{Input, Value};
use taskfork::worker::Arguments;
use taskfork::{
    Blob, BoxError, Checkout, Emitter, Methods, Receiver, Server, ServerBuilder, ServerError,
};

use crate::files::open_here;
use crate::support::raw::Raw;
use crate::support::{address_in, programs, start, start_with, trial, until};

const LONG: usize = 300_000;

#[derive(Default)]
struct Kept {
    blobs: Vec<Blob>,
    child: Option<UnixStream>,
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("echo", |blob: Blob| Ok(blob))
        .function("several", |blobs: Vec<Blob>| Ok(blobs))
        .function("is_lent", |blob: Blob| Ok((is_lent(&blob), blob[0])))
        .function("make", |length: usize, fill: u8| Ok(Blob::from(vec![fill; length])))
        .function("bytes", |bytes: ByteBuf| Ok(bytes))
        .function("value", |value: Value| Ok(value))
        .variadic("twice", |_, args: Arguments<'_>| {
            let first: (Blob,) = args.parse()?;
            let second: (ByteBuf,) = args.parse()?;
            Ok(*first.0 == second.0[..])
        })
        .method("keep", |kept: &mut Kept, blob: Blob| {
            kept.blobs.push(blob);
            Ok(())
        })
        .method("kept", |kept: &mut Kept| Ok(kept.blobs.clone()))
        .method("child", |kept: &mut Kept, blob: Blob| {
            let (here, there) = UnixStream::pair()?;
            // SAFETY: this worker has one thread.
            #[allow(unsafe_code)]
            let forked = unsafe { fork() }?;
            if let ForkResult::Child = forked {
                watch(there, &blob);
            }
            kept.child = Some(here);
            Ok(())
        })
        .method("of_child", |kept: &mut Kept| {
            let mut child = kept.child.take().ok_or("there is none")?;
            child.write_all(b"?")?;
            let mut same = [0];
            child.read_exact(&mut same)?;
            Ok(same[0])
        })
        .function("log", |blob: Blob| {
            taskfork::worker::logger().info("a blob is here");
            Ok(blob)
        })
        .function("fail", |_: Blob| Err::<(), _>("no".into()))
        .function("abort", |_: Blob| -> Result<(), BoxError> { std::process::abort() })
        .function("mapped", || Ok(mapped()))
        .stream_function("blobs", |count: usize, out: &mut Emitter<Blob>| {
            (0..count).try_for_each(|number| out.send(&blob(number as u8)))?;
            Ok(mapped())
        })
        .stream_function("count_lent", |input: &mut Receiver<Blob>| {
            let mut lent = 0;
            while let Some(blob) = input.next()? {
                lent += usize::from(is_lent(&blob));
            }
            Ok(lent)
        })
        .function("open_files", || Ok(open_here()));
    let setup = || Ok::<_, BoxError>(Kept::default());
    server.setup(setup).max_frame(8 << 20).interface(methods).run()
}

/// A child: says when it is asked whether the blob is as it was.
fn watch(mut parent: UnixStream, blob: &Blob) -> ! {
    let fill = blob[0];
    let _ = parent.read_exact(&mut [0]);
    let same = blob.iter().all(|&byte| byte == fill);
    let _ = parent.write_all(&[u8::from(same)]);
    // SAFETY: it ends this process.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(0)
    }
}

fn maps() -> impl Iterator<Item = (usize, usize)> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let lent: Vec<_> = maps
        .lines()
        .filter(|line| line.contains("memfd:taskfork-buffer"))
        .map(|line| {
            let (start, rest) = line.split_once('-').unwrap();
            let end = rest.split_once(' ').unwrap().0;
            let address = |text| usize::from_str_radix(text, 16).unwrap();
            (address(start), address(end))
        })
        .collect();
    lent.into_iter()
}

/// How many pieces of memory that is lent this process has.
fn mapped() -> usize {
    maps().count()
}

/// Whether bytes lie in such memory.
fn is_lent(bytes: &[u8]) -> bool {
    let start = bytes.as_ptr() as usize;
    maps().any(|(first, end)| (first..end).contains(&start))
}

pub(crate) fn blob(fill: u8) -> Blob {
    vec![fill; LONG].into()
}

/// Has blobs of this length lent from here on.
async fn warm(checkout: &Checkout) {
    for _ in 0..10 {
        let (lent, _): (bool, u8) = checkout.call("is_lent", (blob(1),)).await.unwrap();
        if lent {
            return;
        }
    }
    panic!("nothing is lent");
}

trial!(long_blobs_use_shared_buffers_after_a_few_calls, async || {
    let (_server, client) = start("shared_buffers");
    let checkout = client.checkout();
    let first: (bool, u8) = checkout.call("is_lent", (blob(7),)).await.unwrap();
    assert_eq!(first, (false, 7), "new memory does not pay for one");
    warm(&checkout).await;
    let next: (bool, u8) = checkout.call("is_lent", (blob(8),)).await.unwrap();
    assert_eq!(next, (true, 8));
    // Short ones are not.
    let short = Blob::from(vec![9; 10_000]);
    assert_eq!(checkout.call::<(bool, u8)>("is_lent", (short,)).await.unwrap(), (false, 9));
    // Results are as well, and what goes back is not copied.
    let mut made = Vec::new();
    for fill in 0..10 {
        made.push(checkout.call::<Blob>("make", (LONG, fill)).await.unwrap());
    }
    assert!(is_lent(made.last().unwrap()));
    for (fill, blob) in (0..).zip(&made) {
        assert!(blob.len() == LONG && blob.iter().all(|&byte| byte == fill));
    }
    let back: Blob = checkout.call("echo", (made.last().unwrap(),)).await.unwrap();
    assert_eq!(back.as_ptr(), made.last().unwrap().as_ptr());
    let sent = blob(5);
    let back: Blob = checkout.call("echo", (&sent,)).await.unwrap();
    assert!(is_lent(&back) && back == sent);
    let again: Blob = checkout.call("echo", (&back,)).await.unwrap();
    assert_eq!(again.as_ptr(), back.as_ptr());
});

trial!(results_in_shared_memory_are_copied_if_the_client_says_so, async || {
    let (_server, client) = start_with("shared_buffers", |client| client.copy_shared_memory(true));
    let checkout = client.checkout();
    for fill in 0..10 {
        let made: Blob = checkout.call("make", (LONG, fill)).await.unwrap();
        assert!(!is_lent(&made) && made == blob(fill));
        assert_eq!(checkout.call::<Blob>("echo", (&made,)).await.unwrap(), made);
    }
    // The results have come in shared buffers.
    assert!(checkout.call::<usize>("mapped", ()).await.unwrap() > 0);
});

trial!(buffers_are_reused, async || {
    let (_server, client) = start("shared_buffers");
    let checkout = client.checkout();
    warm(&checkout).await;
    for fill in 0..50 {
        let echo: Blob = checkout.call("echo", (blob(fill),)).await.unwrap();
        assert!(is_lent(&echo) && echo == blob(fill));
    }
    assert_eq!(checkout.call::<usize>("mapped", ()).await.unwrap(), 1);
    for fill in 0..50 {
        let made: Blob = checkout.call("make", (LONG, fill)).await.unwrap();
        assert_eq!(made, blob(fill));
    }
    assert_eq!(checkout.call::<usize>("mapped", ()).await.unwrap(), 2);
});

trial!(the_items_of_a_long_stream_lie_in_the_same_buffers_again_and_again, async || {
    let (_server, client) = start("shared_buffers");
    let checkout = client.checkout();
    warm(&checkout).await;
    let mut blobs = checkout.stream::<Blob, usize>("blobs", (200,));
    let mut lent = 0;
    while let Some(blob) = blobs.next().await.unwrap() {
        lent += usize::from(is_lent(&blob));
    }
    // A side maps 16 buffers of the other at most.
    assert!(lent > 150, "{lent} of 200 items were lent");
    assert!(blobs.finish().await.unwrap() < 10, "few buffers are enough");
    let items = Input::iter((0..200).map(blob));
    let lent: usize = checkout.call_with_input("count_lent", (), items).await.unwrap();
    assert!(lent > 150, "{lent} of 200 items of the input were lent");
});

trial!(a_blob_that_a_worker_keeps_does_not_change, async || {
    let (_server, client) = start("shared_buffers");
    let checkout = client.checkout();
    warm(&checkout).await;
    for fill in 0..20 {
        checkout.call::<()>("keep", (blob(fill),)).await.unwrap();
        checkout.call::<(bool, u8)>("is_lent", (blob(99),)).await.unwrap();
    }
    let kept: Vec<Blob> = checkout.call("kept", ()).await.unwrap();
    assert_eq!(kept, (0..20).map(blob).collect::<Vec<_>>());
});

trial!(a_blob_that_a_client_keeps_does_not_change, async || {
    let (_server, client) = start("shared_buffers");
    let checkout = client.checkout();
    let mut kept: Vec<Blob> = Vec::new();
    for fill in 0..20 {
        kept.push(checkout.call("make", (LONG, fill)).await.unwrap());
        kept.push(checkout.call("echo", (blob(fill),)).await.unwrap());
        checkout.call::<Blob>("make", (LONG, 99)).await.unwrap();
        checkout.call::<Blob>("echo", (blob(98),)).await.unwrap();
    }
    drop(checkout);
    drop(client);
    assert_eq!(kept, (0..20).flat_map(|fill| [blob(fill), blob(fill)]).collect::<Vec<_>>());
});

trial!(a_blob_in_a_forked_child_does_not_change, async || {
    let (_server, client) = start("shared_buffers");
    let checkout = client.checkout();
    warm(&checkout).await;
    checkout.call::<()>("child", (blob(1),)).await.unwrap();
    for _ in 0..10 {
        checkout.call::<(bool, u8)>("is_lent", (blob(2),)).await.unwrap();
    }
    assert_eq!(checkout.call::<u8>("of_child", ()).await.unwrap(), 1);
    warm(&checkout).await;
});

trial!(shared_bytes_decode_as_every_type_of_bytes, async || {
    let (_server, client) = start("shared_buffers");
    let checkout = client.checkout();
    warm(&checkout).await;
    let (bytes, value) = (ByteBuf::from(blob(3).to_vec()), Value::Binary(blob(3).to_vec()));
    assert_eq!(checkout.call::<ByteBuf>("bytes", (blob(3),)).await.unwrap(), bytes);
    assert_eq!(checkout.call::<Value>("value", (blob(3),)).await.unwrap(), value);
    assert!(checkout.call::<bool>("twice", (blob(3),)).await.unwrap());
    for _ in 0..10 {
        assert_eq!(checkout.call::<ByteBuf>("make", (LONG, 3)).await.unwrap(), bytes);
        assert_eq!(checkout.call::<Value>("make", (LONG, 3)).await.unwrap(), value);
    }
    let error = checkout.call::<u32>("make", (LONG, 3)).await.unwrap_err();
    assert!(error.to_string().contains("is not of the type asked for"), "{error}");
    // Memory that is handed over as well.
    let mut filled = taskfork::blob::BlobMut::new(LONG).unwrap();
    filled.fill(3);
    let filled = filled.freeze().unwrap();
    assert_eq!(checkout.call::<ByteBuf>("bytes", (&filled,)).await.unwrap(), bytes);
    assert_eq!(checkout.call::<Value>("value", (&filled,)).await.unwrap(), value);
    assert_eq!(checkout.call::<Value>("echo", (&filled,)).await.unwrap(), value);
    // But not more of it than a message may have; as what it is it may have any length.
    let long = taskfork::blob::BlobMut::new(9 << 20).unwrap().freeze().unwrap();
    let error = checkout.call::<ByteBuf>("bytes", (&long,)).await.unwrap_err();
    assert!(!error.is_fatal() && error.to_string().contains("only a `Blob`"), "{error}");
    assert_eq!(checkout.call::<Blob>("echo", (&long,)).await.unwrap().len(), 9 << 20);
});

trial!(blobs_beyond_the_limit_of_shared_memory_are_sent, async || {
    let (_server, client) = start_with("shared_buffers", |client| client.shared_memory(1 << 20));
    let checkout = client.checkout();
    warm(&checkout).await;
    let longer = Blob::from(vec![1; 2 << 20]);
    for _ in 0..10 {
        let (lent, _): (bool, u8) = checkout.call("is_lent", (&longer,)).await.unwrap();
        assert!(!lent);
    }
    let calls: Vec<_> = (0..30).map(|fill| checkout.call::<Blob>("echo", (blob(fill),))).collect();
    let mut back = Vec::new();
    for call in calls {
        back.push(call.await.unwrap());
    }
    assert_eq!(back, (0..30).map(blob).collect::<Vec<_>>());
    assert!(back.iter().any(|blob| is_lent(blob)) && !back.iter().all(|blob| is_lent(blob)));
});

trial!(a_blob_over_the_message_limit_is_refused, async || {
    let (_server, client) = start("shared_buffers");
    let checkout = client.checkout();
    warm(&checkout).await;
    for _ in 0..10 {
        let too_long = Blob::from(vec![0; 9 << 20]);
        let error = checkout.call::<Blob>("echo", (too_long,)).await.unwrap_err();
        assert!(error.to_string().contains("the limit of a message is 8388608"), "{error}");
        let error = checkout.call::<Blob>("make", (9 << 20, 1)).await.unwrap_err();
        assert!(error.to_string().contains("over the limit of 8388608"), "{error}");
    }
});

trial!(a_log_arrives_with_shared_blobs, async || {
    let (_server, client) = start("shared_buffers");
    let (send, messages) = std::sync::mpsc::channel();
    let log = log_defer::Log::new(move |message| send.send(message).unwrap());
    let checkout = client.checkout().log(&log);
    warm(&checkout).await;
    assert_eq!(checkout.call::<Blob>("log", (blob(4),)).await.unwrap(), blob(4));
    drop((checkout, log));
    assert_eq!(messages.recv().unwrap().logs.len(), 1);
});

trial!(no_buffers_over_tcp_or_without_shared_memory, async || {
    for (entry, memory) in
        [("shared_buffers_tcp", 1 << 20), ("shared_buffers_none", 1 << 20), ("shared_buffers", 0)]
    {
        let (_server, client) = start_with(entry, |client| client.shared_memory(memory));
        let checkout = client.checkout();
        for fill in 0..10 {
            let lent: (bool, u8) = checkout.call("is_lent", (blob(fill),)).await.unwrap();
            assert_eq!(lent, (false, fill), "{entry}");
            assert!(!is_lent(&checkout.call::<Blob>("make", (LONG, fill)).await.unwrap()));
        }
    }
});

trial!(no_memory_is_shared_with_another_user, async || {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let _program = programs::start(&["serve_shared_buffers", &address_in(&folder)]);
    let path = folder.path().join("s");
    assert!(sharing(&path).await.1.is_some());
    let agreed = tokio::task::spawn_blocking(move || {
        std::thread::spawn(move || {
            // SAFETY: the system call itself is about the calling thread alone, which ends with this.
            #[allow(unsafe_code)]
            unsafe {
                libc::syscall(libc::SYS_setresuid, -1, 65_534, -1);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(sharing(&path)).1
        })
        .join()
        .unwrap()
    });
    assert_eq!(agreed.await.unwrap(), None);
});

trial!(an_allocated_blob_is_filled_in_place, async || {
    let (_server, client) = start("shared_buffers");
    let checkout = client.checkout();
    // Without a worker, and before its first answer, it is as any other.
    assert_eq!(checkout.alloc_blob(10).unwrap().len(), 10);
    checkout.ready().await.unwrap();
    let blob = checkout.alloc_blob(LONG).unwrap().freeze().unwrap();
    let lent: (bool, u8) = checkout.call("is_lent", (&blob,)).await.unwrap();
    assert!(!lent.0);
    let mut places = Vec::new();
    for fill in 0..10 {
        let mut memory = checkout.alloc_blob(LONG).unwrap();
        assert_eq!(memory.len(), LONG);
        memory.fill(fill);
        let blob = memory.freeze().unwrap();
        places.push(blob.as_ptr());
        let lent: (bool, u8) = checkout.call("is_lent", (&blob,)).await.unwrap();
        assert_eq!(lent, (true, fill));
        let back: Blob = checkout.call("echo", (&blob,)).await.unwrap();
        assert_eq!(back.as_ptr(), blob.as_ptr());
    }
    assert!(places.iter().all(|&place| place == places[0]), "{places:?}");
    // One that is new to the worker, and goes to it twice.
    let other = client.checkout();
    other.call::<usize>("mapped", ()).await.unwrap();
    let mut memory = other.alloc_blob(LONG).unwrap();
    memory.fill(66);
    let twice = memory.freeze().unwrap();
    let back: Vec<Blob> = other.call("several", ((&twice, &twice),)).await.unwrap();
    assert_eq!(back.len(), 2);
    assert!(back.iter().all(|blob| blob.as_ptr() == twice.as_ptr()), "it was sent after all");
    // One that is short, one that is not used, and one that goes to another worker.
    let mut short = checkout.alloc_blob(100).unwrap();
    short.fill(1);
    let short = short.freeze().unwrap();
    assert_eq!(checkout.call::<(bool, u8)>("is_lent", (&short,)).await.unwrap(), (false, 1));
    drop(checkout.alloc_blob(LONG).unwrap());
    // One that is longer than a message may be is handed over.
    let long = checkout.alloc_blob(9 << 20).unwrap().freeze().unwrap();
    assert_eq!(checkout.call::<Blob>("echo", (&long,)).await.unwrap().len(), 9 << 20);
    let mut memory = checkout.alloc_blob(LONG).unwrap();
    memory.fill(77);
    let blob = memory.freeze().unwrap();
    assert_eq!(other.call::<Blob>("echo", (&blob,)).await.unwrap(), blob);
    assert_eq!(checkout.call::<Blob>("echo", (&blob,)).await.unwrap(), blob);
    assert_eq!(*blob, vec![77; LONG]);
});

trial!(a_failed_or_abandoned_call_loses_no_memory, async || {
    let (_server, client) = start_with("shared_buffers", |client| {
        client.max_workers(1).shared_memory(1 << 20).reuse_after_error(true)
    });
    warm(&client.checkout()).await;
    for _ in 0..20 {
        client.call::<()>("fail", (blob(1),)).await.unwrap_err();
        let checkout = client.checkout();
        let failing = checkout.call::<()>("fail", (blob(2),));
        let skipped = checkout.call::<()>("echo", (blob(3),));
        drop(checkout.call::<Blob>("echo", (blob(4),)));
        failing.await.unwrap_err();
        skipped.await.unwrap_err();
        drop(checkout);
        let checkout = client.checkout();
        drop(checkout.call::<Blob>("make", (LONG, 4)));
        assert_eq!(checkout.call::<Blob>("make", (LONG, 5)).await.unwrap(), blob(5));
    }
    let lent: (bool, u8) = client.call("is_lent", (blob(6),)).await.unwrap();
    assert_eq!(lent, (true, 6));
    let checkout = client.checkout();
    let _: Blob = checkout.call("make", (LONG, 6)).await.unwrap();
    assert!(is_lent(&checkout.call::<Blob>("make", (LONG, 6)).await.unwrap()));
});

trial!(idle_memory_is_returned, async || {
    // Other tests lend memory and open files meanwhile.
    programs::run("return_idle_buffers").await;
});

/// The test program of that test.
pub(crate) async fn return_idle() {
    let (_server, client) = start_with("shared_buffers", |client| client.max_workers(1));
    let checkout = client.checkout();
    warm(&checkout).await;
    for fill in 0..10 {
        checkout.call::<Blob>("make", (LONG, fill)).await.unwrap();
    }
    assert_eq!((mapped(), checkout.call("mapped", ()).await.unwrap()), (2, 2));
    // Whether the checkout goes on or not.
    until("what is not in use to be given back", || mapped() == 0).await;
    assert_eq!(checkout.call::<usize>("mapped", ()).await.unwrap(), 0);
    warm(&checkout).await;
    let back: Blob = checkout.call("echo", (blob(8),)).await.unwrap();
    drop(checkout);
    until("the worker to give up what it does not own", || {
        // What a blob holds is there as long as that.
        mapped() == 1 && server_has_given_up()
    })
    .await;
    assert_eq!(*back, vec![8; LONG]);
    drop(back);
    assert_eq!(mapped(), 0);
    // A worker that has other things to do gives it back as well.
    let checkout = client.checkout();
    warm(&checkout).await;
    let (mut calls, mut left) = (0, 1);
    while left > 0 {
        left = checkout.call::<usize>("mapped", ()).await.unwrap();
        calls += 1;
        assert!(calls < 30_000, "it keeps what it does not use");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(mapped(), 0);
}

/// Whether no child of this process, or of one of these, has memory that is lent.
fn server_has_given_up() -> bool {
    let own = std::process::id().to_string();
    let mut family = vec![own];
    let mut place = 0;
    while let Some(parent) = family.get(place) {
        let tasks = format!("/proc/{parent}/task/{parent}/children");
        let children = std::fs::read_to_string(tasks).unwrap_or_default();
        family.extend(children.split_whitespace().map(str::to_owned));
        place += 1;
    }
    family[1..].iter().all(|pid| {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        !maps.contains("memfd:taskfork-buffer")
    })
}

trial!(ended_workers_leave_no_buffer_or_descriptor, async || {
    // Other tests lend memory and open files meanwhile.
    programs::run("release_buffers").await;
});

/// The test program of that test.
pub(crate) async fn release_all() {
    let (_server, client) = start_with("shared_buffers", |client| client.max_workers(1));
    let before: usize = client.call("open_files", ()).await.unwrap();
    let here = open_here();
    for round in 0..5 {
        let checkout = client.checkout();
        warm(&checkout).await;
        for fill in 0..10 {
            checkout.call::<Blob>("echo", (blob(fill),)).await.unwrap();
            checkout.call::<Blob>("make", (LONG, fill)).await.unwrap();
        }
        assert_eq!(checkout.call::<usize>("open_files", ()).await.unwrap(), before, "{round}");
        let dead = checkout.call::<()>("abort", (blob(3),)).await;
        assert!(dead.unwrap_err().is_fatal());
        drop(checkout);
        until("the memory of a dead worker to go", || mapped() == 0).await;
    }
    client.call::<usize>("open_files", ()).await.unwrap();
    assert_eq!(open_here(), here);
}

/// Connects as a client that keeps memory; gives how much the worker keeps, if memory is shared.
pub(crate) async fn sharing(path: &Path) -> (Raw, Option<u64>) {
    Raw::sharing(path, 1 << 20, "mapped").await
}

/// The test program that is a server.
pub(crate) fn serve(address: &str) -> Result<(), ServerError> {
    server(Server::builder().listen(address).socket_mode(0o666))
}
