//! The code of the workers.

use std::time::Duration;

use taskfork::worker::context;
use taskfork::{Methods, ServerBuilder, ServerError};

/// What would be markup, if it were not escaped. It changes the title if it runs.
pub(crate) const MARKUP: &str =
    "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">";

/// A method whose name is markup too. Names are cut at 64 bytes.
pub(crate) const MARKUP_METHOD: &str = "<script>document.title='run'</script>";

/// Waits for ever. Its name is what stacks show.
#[inline(never)]
fn wait_for_a_lock_that_nobody_frees() {
    loop {
        std::thread::park();
    }
}

fn methods() -> Methods<()> {
    Methods::new()
        .function("render", |milliseconds: u64| {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(milliseconds)
        })
        .function("convert", || -> Result<(), taskfork::BoxError> {
            wait_for_a_lock_that_nobody_frees();
            Ok(())
        })
        .function("export", |pages: u64| -> Result<(), taskfork::BoxError> {
            context().progress(pages, 12, "pages");
            wait_for_a_lock_that_nobody_frees();
            Ok(())
        })
        .function("import", |said: String| -> Result<(), taskfork::BoxError> {
            eprintln!("reading row 4711\n{said}");
            std::process::abort()
        })
        .function("check", |what: String| -> Result<(), taskfork::BoxError> {
            Err(format!("{what} is wrong").into())
        })
        .function("remember", |mebibytes: usize| {
            // Each page is written to, so that it is resident.
            std::mem::forget(vec![1_u8; mebibytes << 20]);
            Ok(())
        })
        .function(MARKUP_METHOD, || -> Result<(), taskfork::BoxError> {
            wait_for_a_lock_that_nobody_frees();
            Ok(())
        })
}

pub(crate) fn plain(server: ServerBuilder) -> Result<(), ServerError> {
    let address: String = server.config()?;
    server.name("documents").listen(&address).max_workers(4).interface(methods()).run()
}

/// It tells everybody what dead workers said.
pub(crate) fn shared(server: ServerBuilder) -> Result<(), ServerError> {
    plain(server.share_details(true))
}

pub(crate) fn named_as_markup(server: ServerBuilder) -> Result<(), ServerError> {
    let address: String = server.config()?;
    server.name(MARKUP).listen(&address).max_workers(4).interface(methods()).run()
}

/// Its calls take much longer than those of the others.
pub(crate) fn slow(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new().function("render", |_: u64| {
        std::thread::sleep(Duration::from_millis(200));
        Ok(0_u64)
    });
    let address: String = server.config()?;
    server.name("documents").listen(&address).max_workers(4).interface(methods).run()
}
