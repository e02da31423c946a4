//! Causes the errors that the guide's chapter about troubleshooting explains, and prints their messages.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add tempfile
//! cargo add tokio --features full
//! cargo add tracing-subscriber
//! ```

use std::fmt::Display;
use std::future::Future;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use taskfork::client::{ConfigError, Protocol};
use taskfork::server::{Limit, Spawn};
use taskfork::worker::Executable;
use taskfork::{BoxError, Client, Error, Methods, Server, ServerBuilder, ServerError};

/// The variable that names the fault of a copy of this program.
const FAULT: &str = "MESSAGES_FAULT";

fn faults(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("add", |a: i64, b: i64| Ok(a + b))
        .function("fail", || -> Result<(), BoxError> { Err("the disk is full".into()) })
        .function("panic", || -> Result<(), BoxError> { panic!("no such row") })
        .function("path", || Ok(PathBuf::from(std::ffi::OsString::from_vec(vec![0xff]))))
        .function("abort", || -> Result<(), BoxError> { std::process::abort() })
        .function("exit", || -> Result<(), BoxError> { std::process::exit(3) })
        .function("sleep", |seconds: u64| {
            std::thread::sleep(Duration::from_secs(seconds));
            Ok(())
        });
    server.name("faults").hung_worker_timeout(Duration::from_secs(2)).interface(methods).run()
}

fn limited(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::<()>::new().function("compute", || -> Result<(), BoxError> {
        loop {
            std::hint::spin_loop();
        }
    });
    server.limit(Limit::CpuTime, 1).interface(methods).run()
}

fn no_setup(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new().method("add", |_: &mut (), a: i64, b: i64| Ok(a + b));
    server.setup(|| Err::<(), _>("the database is down")).interface(methods).run()
}

fn slow_setup(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new().method("add", |_: &mut (), a: i64, b: i64| Ok(a + b));
    let setup = || {
        std::thread::sleep(Duration::from_secs(60));
        Ok::<_, BoxError>(())
    };
    server.setup(setup).interface(methods).run()
}

fn configured(server: ServerBuilder) -> Result<(), ServerError> {
    let greeting: String = server.config()?;
    server.interface(Methods::new().function("greet", move || Ok(greeting.clone()))).run()
}

fn no_preload(server: ServerBuilder) -> Result<(), ServerError> {
    let server = server.preload(|| Err::<(), _>("there is no model.bin"));
    server.setup(|()| Ok::<_, BoxError>(())).interface(Methods::new()).run()
}

fn no_option(server: ServerBuilder) -> Result<(), ServerError> {
    server.max_workers(0).interface(Methods::<()>::new()).run()
}

fn slow(server: ServerBuilder) -> Result<(), ServerError> {
    std::thread::sleep(Duration::from_secs(60));
    server.interface(Methods::<()>::new()).run()
}

fn no_protocol(server: ServerBuilder) -> Result<(), ServerError> {
    server.executable(Executable::new("echo").arg("hello")).run()
}

fn no_program(server: ServerBuilder) -> Result<(), ServerError> {
    server.executable(Executable::new("no-such-program")).run()
}

fn main() -> Result<(), BoxError> {
    let fault = std::env::var(FAULT).unwrap_or_default();
    // `Server::spawn` starts a copy without arguments.
    if fault == "never" && std::env::args().len() == 1 {
        eprintln!("usage: app FILE");
        std::process::exit(2);
    }
    if fault == "late" {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60)));
    }
    if fault != "missing" {
        taskfork::init(&[
            ("faults", faults),
            ("limited", limited),
            ("no_setup", no_setup),
            ("slow_setup", slow_setup),
            ("configured", configured),
            ("no_preload", no_preload),
            ("no_option", no_option),
            ("slow", slow),
            ("no_protocol", no_protocol),
            ("no_program", no_program),
        ]);
    }
    if !fault.is_empty() {
        show(Server::spawn("faults"));
        return Ok(());
    }
    if std::env::args().len() > 1 {
        return logged();
    }
    let folder = tempfile::tempdir()?;
    listening(folder.path())?;
    starting()?;
    tokio::runtime::Runtime::new()?.block_on(calls(folder.path()))
}

/// Runs a server that may open few files, with a client of a protocol that it does not serve.
fn logged() -> Result<(), BoxError> {
    tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(std::io::stdout).init();
    let server = Server::fork(|server| {
        server.listen("tcp:127.0.0.1:0").interface(Methods::<()>::new()).run()
    })?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let client = Client::builder().address(server.address()).protocol(Protocol::Perl);
        let client = client.min_workers(0).timeout(Duration::from_millis(300)).build()?;
        show_call(client.call::<i64>("add", (1, 2))).await;
        Ok(())
    })
}

/// Prints the expected error.
fn show<T, E: Display>(result: Result<T, E>) {
    match result {
        Ok(_) => println!("it worked, and should not have"),
        Err(error) => println!("{error}\n"),
    }
}

async fn show_call<T>(call: impl Future<Output = Result<T, Error>>) {
    show(call.await);
}

fn listening(folder: &Path) -> Result<(), BoxError> {
    let run = |address: &str| {
        let server = Server::builder().listen(address).status_socket(None);
        server.interface(Methods::<()>::new()).run()
    };
    show(Server::builder().interface(Methods::<()>::new()).run());
    show(run("app.sock"));
    show(run(&format!("unix:{}/{}", folder.display(), "x".repeat(120))));
    show(run("tcp:0.0.0.0:7000"));
    show(run(&format!("unix:{}/missing/app.sock", folder.display())));
    std::fs::write(folder.join("app.txt"), "")?;
    show(run(&format!("unix:{}/app.txt", folder.display())));
    let socket = format!("unix:{}/used.sock", folder.display());
    let first = Server::fork(|server| {
        server.listen(socket.as_str()).interface(Methods::<()>::new()).run()
    })?;
    show(run(&socket));
    first.close();
    Ok(())
}

fn starting() -> Result<(), BoxError> {
    show(Server::spawn("missing"));
    show(Server::spawn("configured"));
    show(Server::spawn_with("configured", &7));
    show(Server::spawn("no_preload"));
    show(Server::spawn("no_option"));
    show(Spawn::new("slow").start_timeout(Duration::from_secs(1)).start());
    for fault in ["missing", "late", "never"] {
        let output =
            Command::new(std::env::current_exe()?).arg("spawn").env(FAULT, fault).output()?;
        print!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let limited = "ulimit -n 64 && exec \"$0\" log";
    let output =
        Command::new("sh").arg("-c").arg(limited).arg(std::env::current_exe()?).output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    let thread = std::thread::spawn(|| std::thread::sleep(Duration::from_secs(1)));
    show(Server::fork(|server| server.interface(Methods::<()>::new()).run()));
    let _ = thread.join();
    show::<_, ConfigError>(Client::builder().address("unix:/run/app.sock").build());
    Ok(())
}

async fn calls(folder: &Path) -> Result<(), BoxError> {
    show(Client::builder().build());
    show(Client::builder().address("app.sock").build());
    show(Client::builder().address("unix:/run/app.sock").max_workers(1).min_workers(2).build());

    let server = Server::spawn("faults")?;
    let client = Client::builder().address(server.address()).build()?;
    show_call(client.call::<i64>("subtract", (1, 2))).await;
    show_call(client.invoke::<i64>((1, 2))).await;
    show_call(client.call::<i64>("add", (1,))).await;
    show_call(client.call::<i64>("add", (1, "two"))).await;
    show_call(client.call::<String>("add", (1, 2))).await;
    show_call(client.call::<PathBuf>("path", ())).await;
    show_call(client.call::<()>("panic", ())).await;
    show_call(client.call::<()>("abort", ())).await;
    show_call(client.call::<()>("exit", ())).await;
    show_call(client.call::<()>("sleep", (60,))).await;
    let checkout = client.checkout();
    let (first, second) = (checkout.call::<()>("fail", ()), checkout.call::<()>("fail", ()));
    show_call(first).await;
    show_call(second).await;
    show_call(client.checkout().timeout(Duration::from_millis(200)).call::<()>("sleep", (60,)))
        .await;

    let one = Client::builder().address(server.address()).max_workers(1).max_queue(1).build()?;
    let busy = one.checkout();
    busy.ready().await?;
    let waits = one.checkout().timeout(Duration::from_millis(300));
    let call = waits.call::<i64>("add", (1, 2));
    show_call(one.call::<i64>("add", (1, 2))).await;
    show_call(call).await;
    busy.abort("the user pressed stop");
    show_call(busy.call::<i64>("add", (1, 2))).await;
    drop((busy, waits));
    one.close().await;
    show_call(one.call::<i64>("add", (1, 2))).await;

    let nowhere = format!("unix:{}/nowhere.sock", folder.display());
    let client =
        Client::builder().address(nowhere.as_str()).timeout(Duration::from_secs(1)).build()?;
    show_call(client.call::<i64>("add", (1, 2))).await;

    for entry in ["no_setup", "no_protocol", "no_program"] {
        let server = Server::spawn(entry)?;
        let client = Client::builder().address(server.address()).build()?;
        show_call(client.call::<i64>("add", (1, 2))).await;
    }

    let server = Server::spawn("slow_setup")?;
    let client = Client::builder().address(server.address()).max_workers(1).build()?;
    client.checkout().ready().await?;
    show_call(client.checkout().timeout(Duration::from_millis(300)).call::<()>("add", (1, 2)))
        .await;

    let server = Server::spawn("limited")?;
    let client = Client::builder().address(server.address()).build()?;
    show_call(client.call::<()>("compute", ())).await;

    let server = Spawn::new("faults").respawn(false).start()?;
    let client = Client::builder().address(server.address()).build()?;
    client.call::<i64>("add", (1, 2)).await?;
    Command::new("kill").args(["-KILL", &server.pid().to_string()]).status()?;
    while server.is_alive() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    show_call(client.call::<i64>("add", (1, 2))).await;
    Ok(())
}
