//! Behaviour, tried on real processes. The binary has a `main` of its own, since a program that
//! starts servers by executing itself needs a first line in `main`, and so do these tests.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod access;
mod addresses;
mod ahead;
mod bad_peers;
mod blob_limits;
mod blobs;
mod blocking;
mod bounds;
mod busy_poll;
mod calls;
mod deadlines;
mod deaths;
mod descriptors;
mod errors;
mod executable;
mod file_limits;
mod files;
mod floods;
mod forks;
mod greeting;
mod guardian;
mod handles;
mod handshake;
mod hangup;
mod json_bytes;
mod keep_pid;
mod leaks;
mod lending;
mod limits;
mod load;
mod log_output;
mod logs;
#[cfg(feature = "metrics")]
mod metrics;
mod new_version;
mod open_files;
mod orphans;
mod overload;
mod perl;
mod perl_client;
mod pool;
mod preload;
mod recycling;
mod reports;
mod restart;
mod rings;
mod server;
mod service_manager;
mod setup;
mod shared_memory;
mod sharing;
mod shutdown;
mod signals;
mod socket_files;
#[cfg(feature = "spans")]
mod spans;
mod spares;
mod spawned;
mod status;
mod stderr;
mod support;
mod time_limits;
mod traces;
mod typed;
mod users;
mod workers;

/// Tests may run under `nohup`, or in something like it. What they start would not react to SIGHUP then.
fn hear_hangups() {
    // SAFETY: no handler is set.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGHUP, libc::SIG_DFL)
    };
}

fn main() {
    if support::roles::plays_before_init() {
        return;
    }
    taskfork::init(support::servers::ENTRIES);
    if support::roles::plays() {
        return;
    }
    hear_hangups();
    let arguments = libtest_mimic::Arguments::from_args();
    let trials = [
        access::trials(),
        addresses::trials(),
        ahead::trials(),
        bad_peers::trials(),
        blob_limits::trials(),
        blobs::trials(),
        blocking::trials(),
        bounds::trials(),
        busy_poll::trials(),
        calls::trials(),
        deadlines::trials(),
        deaths::trials(),
        descriptors::trials(),
        errors::trials(),
        executable::trials(),
        file_limits::trials(),
        files::trials(),
        floods::trials(),
        forks::trials(),
        greeting::trials(),
        guardian::trials(),
        handles::trials(),
        handshake::trials(),
        json_bytes::trials(),
        leaks::trials(),
        lending::trials(),
        rings::trials(),
        limits::trials(),
        load::trials(),
        log_output::trials(),
        logs::trials(),
        #[cfg(feature = "metrics")]
        metrics::trials(),
        open_files::trials(),
        orphans::trials(),
        overload::trials(),
        perl::trials(),
        perl_client::trials(),
        pool::trials(),
        preload::trials(),
        recycling::trials(),
        reports::trials(),
        hangup::trials(),
        keep_pid::trials(),
        new_version::trials(),
        service_manager::trials(),
        restart::trials(),
        server::trials(),
        setup::trials(),
        shared_memory::trials(),
        sharing::trials(),
        shutdown::trials(),
        signals::trials(),
        socket_files::trials(),
        spares::trials(),
        spawned::trials(),
        #[cfg(feature = "spans")]
        spans::trials(),
        status::trials(),
        stderr::trials(),
        time_limits::trials(),
        traces::trials(),
        typed::trials(),
        users::trials(),
        workers::trials(),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit();
}
