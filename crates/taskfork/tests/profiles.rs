//! Workers write their profiles, although this crate is not compiled for coverage. Functions of this program stand for
//! those of LLVM's profiler, which a program that is compiled for coverage has already.
#![cfg(all(not(coverage), any(target_arch = "x86_64", target_arch = "aarch64")))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use taskfork::{Client, Methods, Server, ServerBuilder, ServerError};

static IS_INITIALIZED: AtomicBool = AtomicBool::new(false);
/// Where this process writes its profile, if it shall.
static PROFILE: Mutex<Option<PathBuf>> = Mutex::new(None);

#[expect(unsafe_code, reason = "the attribute names a symbol that only the profiler has otherwise")]
#[unsafe(no_mangle)]
extern "C" fn __llvm_profile_initialize_file() {
    IS_INITIALIZED.store(true, Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "the attribute names a symbol that only the profiler has otherwise")]
#[unsafe(no_mangle)]
extern "C" fn __llvm_profile_write_file() -> i32 {
    let profile = PROFILE.lock().unwrap_or_else(PoisonError::into_inner);
    match profile.as_ref() {
        Some(path) if IS_INITIALIZED.load(Ordering::Relaxed) => {
            i32::from(std::fs::write(path, std::process::id().to_string()).is_err())
        }
        _ => 1,
    }
}

fn profiled(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new().function("profile_to", |path: PathBuf| {
        *PROFILE.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
        Ok(std::process::id())
    });
    server.interface(methods).run()
}

taskfork::test_support!(("profiled", profiled));

#[test]
fn a_worker_whose_client_has_left_writes_its_profile() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("profile");
    let server = Server::spawn("profiled").unwrap();
    let client = Client::builder().address(server.address()).build_blocking().unwrap();
    let worker: u32 = client.call("profile_to", (&path,)).unwrap();

    drop(client);
    server.close();

    assert_eq!(std::fs::read_to_string(&path).unwrap(), worker.to_string());
}
