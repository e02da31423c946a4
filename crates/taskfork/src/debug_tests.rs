//! Every error as a `main` shows it that returns it.

use std::fmt::{Debug, Display};
use std::io;
use std::time::Duration;

use crate::blocking::BuildError;
use crate::client::{AddressError, ConfigError};
use crate::error::{
    Activity, CallError, CallSite, ConnectionError, Death, End, Error, Failure, FatalError, Hung,
    Location, Needs, Panic, Stage, TimeoutOption,
};
use crate::server::ServerError;
use crate::worker::ArgumentsError;

fn reads_like_display<E: Debug + Display>(errors: impl IntoIterator<Item = E>) {
    for error in errors {
        let (debug, display) = (format!("{error:?}"), error.to_string());
        assert!(debug.starts_with(&display), "{debug}\n\n{display}");
        assert!(format!("{error:#?}").starts_with(&display), "{error:#?}");
    }
}

fn text() -> String {
    "some text".to_owned()
}

fn denied() -> io::Error {
    io::ErrorKind::PermissionDenied.into()
}

fn server_errors() -> Vec<ServerError> {
    let after = Duration::from_secs(30);
    vec![
        ServerError::NoAddress,
        ServerError::Address(AddressError::Unknown { text: text() }),
        ServerError::InUse { address: text() },
        ServerError::NotASocket { path: text().into() },
        ServerError::Folder { folder: text().into(), source: denied() },
        ServerError::Foreign { path: text().into(), user: 7 },
        ServerError::Lock { path: text().into(), source: denied() },
        ServerError::Listen { address: text(), source: denied() },
        ServerError::Network { address: text() },
        ServerError::Inherited { descriptor: 3, source: denied() },
        ServerError::Threads { threads: 2 },
        ServerError::Option { option: "max_age", reason: text(), source: None },
        ServerError::Preload(Failure::new("top").caused_by("below")),
        ServerError::NotInitialised { name: text() },
        ServerError::InitialisedLate,
        ServerError::UnknownEntry { name: text(), known: vec![text()] },
        ServerError::UnencodableConfig { name: text(), source: Failure::new("deep") },
        ServerError::NotConfigured,
        ServerError::Misconfigured { expected: text(), source: Failure::new("no field") },
        ServerError::NeverInitialised { name: text(), end: End::Exited(2), output: text() },
        ServerError::StartTimedOut {
            name: text(),
            after,
            process: text(),
            initialised: false,
            output: text(),
        },
        ServerError::Startup { source: Failure::new("top").caused_by("below") },
        ServerError::Killed { workers: 1 },
        ServerError::System { what: "cannot fork", source: denied() },
    ]
}

fn fatal_errors() -> Vec<FatalError> {
    let after = Duration::from_secs(1);
    let stack = Some("at work".to_owned());
    let hung = Some(Box::new(Hung { ran_for: after, stack, no_stack: None, stderr: Some(text()) }));
    let death = Death {
        pid: 7,
        program: None,
        end: End::Signaled(9),
        reason: Some(text()),
        during: Some(Activity::Call),
        stderr: Some("last words".to_owned()),
        hung: None,
    };
    vec![
        FatalError::TimedOut {
            after,
            limit: TimeoutOption::RunTimeout,
            stage: Stage::Running,
            hung: hung.clone(),
        },
        FatalError::TimedOut {
            after,
            limit: TimeoutOption::Timeout,
            stage: Stage::Waiting,
            hung: None,
        },
        FatalError::WorkerDied(death.clone()),
        FatalError::WorkerDied(Death { hung, ..death }),
        FatalError::Aborted { message: text() },
        FatalError::CannotConnect {
            address: text(),
            reason: ConnectionError::new(text()),
            unreachable_for: after,
            after,
        },
        FatalError::ServerEnded {
            pid: 7,
            end: End::Signaled(9),
            reason: Some(Failure::new("top").caused_by("below")),
        },
        FatalError::ServerShutDown { pid: 7, handle_dropped: true },
        FatalError::WrongInterface { address: text(), difference: text() },
        FatalError::Overloaded { queued: 3 },
        FatalError::NodeLost { node: text(), last_contact: after },
        FatalError::Protocol { detail: ConnectionError::new(text()) },
    ]
}

fn call_errors() -> Vec<CallError> {
    let failure = Failure::new("top").caused_by("below");
    let location = Some(Location { file: text(), line: 1, column: 2 });
    vec![
        CallError::Interface(failure.clone()),
        CallError::Panic(Panic { message: text(), location, stack: Some(text()) }),
        CallError::UnknownMethod { method: Some(text()), known: vec![text()] },
        CallError::UnknownMethod { method: None, known: Vec::new() },
        CallError::Arguments { message: text(), needs: Needs::default() },
        CallError::Result { message: text() },
        CallError::Decode { message: text() },
        CallError::Input(failure.clone()),
        CallError::Setup { failure },
        CallError::Dropped { behind: text() },
    ]
}

#[test]
fn debug_reads_like_display() {
    reads_like_display(server_errors());
    reads_like_display(fatal_errors());
    reads_like_display(call_errors());
    let site = || CallSite::new("client", Some("add"), std::panic::Location::caller());
    reads_like_display(call_errors().into_iter().map(|error| Error::Call { error, site: site() }));
    let fatal = |cause| Error::<Failure>::Fatal { cause, may_have_run: true, site: site() };
    reads_like_display(fatal_errors().into_iter().map(fatal));
    reads_like_display([Failure::new("top"), Failure::new("top").caused_by("below")]);
    reads_like_display([
        AddressError::Unknown { text: text() },
        AddressError::Path { text: text() },
        AddressError::PathTooLong { path: text().into(), length: 200, max: 107 },
        AddressError::Tcp { text: text() },
        AddressError::Descriptor { text: text() },
    ]);
    reads_like_display([
        ConfigError::NoAddress,
        ConfigError::Address(AddressError::Unknown { text: text() }),
        ConfigError::NotConnectable { address: text() },
        ConfigError::NoWorkers,
        ConfigError::MaxBelowMin { min_workers: 2, max_workers: 1 },
        ConfigError::NoCheckouts,
        ConfigError::NoRuntime,
    ]);
    reads_like_display([BuildError::Config(ConfigError::NoWorkers), BuildError::Thread(denied())]);
    reads_like_display([ArgumentsError::from(text())]);
}

#[test]
fn debug_says_more_than_display_where_more_is_known() {
    let [.., hung] = &fatal_errors()[..4] else { unreachable!() };
    let debug = format!("{hung:?}");
    assert!(debug.contains("it had run for 1 second, and was at\nat work"), "{debug}");
    let debug = format!("{:?}", Failure::new("top").caused_by("below"));
    assert_eq!(debug, "top\ncaused by: below");
    let error = ServerError::Preload(Failure::new("top").caused_by("below"));
    assert_eq!(format!("{error:?}"), "cannot preload: top\ncaused by: below");
}

#[test]
fn the_sources_of_an_error_lead_to_its_first_cause() {
    fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
        let chain = std::iter::successors(Some(error), |error| error.source());
        chain.last().map(ToString::to_string).unwrap_or_default()
    }
    let cause = || io::Error::other("the first cause");
    let failure = || Failure::new("above").caused_by("the first cause");
    let (folder, address) = ("/run/a".into(), "unix:/run/a".to_owned());
    let (descriptor, option) = (3, "niceness");
    let reason = || ConnectionError::system(cause());
    let (unreachable_for, after) = (Duration::ZERO, Duration::ZERO);
    let with_sources: [Box<dyn std::error::Error>; 16] = [
        Box::new(ServerError::Lock { path: "/run/a.lock".into(), source: cause() }),
        Box::new(ServerError::Inherited { descriptor, source: cause() }),
        Box::new(ServerError::Option { option, reason: text(), source: Some(cause()) }),
        Box::new(ServerError::UnencodableConfig { name: text(), source: failure() }),
        Box::new(ServerError::Misconfigured { expected: text(), source: failure() }),
        Box::new(ServerError::Startup { source: failure() }),
        Box::new(FatalError::ServerEnded { pid: 7, end: End::Unknown, reason: Some(failure()) }),
        Box::new(ServerError::Folder { folder, source: cause() }),
        Box::new(ServerError::Listen { address, source: cause() }),
        Box::new(ServerError::System { what: "cannot fork", source: cause() }),
        Box::new(ServerError::Preload(failure())),
        Box::new(BuildError::from(cause())),
        Box::new(FatalError::CannotConnect {
            address: text(),
            reason: reason(),
            unreachable_for,
            after,
        }),
        Box::new(FatalError::Protocol { detail: reason() }),
        Box::new(CallError::<Failure>::Setup { failure: failure() }),
        Box::new(CallError::Interface(failure())),
    ];
    for error in with_sources {
        assert_eq!(innermost(&*error), "the first cause", "{error}");
    }
}
