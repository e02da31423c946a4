//! What a server loads before it forks.

use taskfork::{BoxError, Methods, Server, ServerBuilder, ServerError};

use crate::support::{start, trial};

struct Table {
    loaded_by: u32,
    rows: Vec<u64>,
}

struct Worker {
    table: &'static Table,
    next: usize,
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .method("next", |worker: &mut Worker| {
            worker.next += 1;
            Ok((worker.table.loaded_by, worker.table.rows[worker.next - 1]))
        })
        .method("place", |worker: &mut Worker| Ok(worker.table.rows.as_ptr().addr()));
    server
        .preload(|| {
            let rows = (0..1000).map(|row| row * row).collect();
            Ok::<_, BoxError>(Table { loaded_by: std::process::id(), rows })
        })
        .setup(|table| Ok::<_, BoxError>(Worker { table, next: 31 }))
        .interface(methods)
        .run()
}

pub(crate) fn failing(server: ServerBuilder) -> Result<(), ServerError> {
    let preloaded = server.preload(|| Err::<(), _>("no such table"));
    preloaded.setup(|()| Ok::<_, BoxError>(())).interface(Methods::new()).run()
}

trial!(preloaded_state_reaches_every_worker, async || {
    let (server, client) = start("preloaded");
    let both = [client.checkout(), client.checkout()];
    let mut places = Vec::new();
    for checkout in &both {
        assert_eq!(checkout.call::<(u32, u64)>("next", ()).await.unwrap(), (server.pid(), 961));
        assert_eq!(checkout.call::<(u32, u64)>("next", ()).await.unwrap().1, 1024);
        places.push(checkout.call::<u64>("place", ()).await.unwrap());
    }
    // The memory is shared, because no process has written to it.
    assert_eq!(places[0], places[1]);
});

trial!(a_failed_preload_keeps_the_server_from_starting, async || {
    let error = Server::spawn("preload_fails").unwrap_err().to_string();
    assert!(error.contains("cannot preload: no such table"), "{error}");
});
