//! Recording a server's status as metrics of the crate `metrics`. A server itself has no thread for
//! a recorder, so the program that reads the status records it.

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::status::{ServerStatus, WorkerStatus};

impl ServerStatus {
    /// Records the status with the program's recorder of the crate `metrics`. Needs the feature
    /// `metrics`. Call it after each [`read`](Self::read).
    ///
    /// | metric | kind | labels |
    /// |---|---|---|
    /// | `taskfork_server_workers` | gauge | `server`, `state` |
    /// | `taskfork_server_checkouts_queued` | gauge | `server` |
    /// | `taskfork_server_sandbox` | gauge: 1 | `server`, `level` (`off` without a sandbox) |
    /// | `taskfork_server_deaths_total` | counter | `server`, `cause` |
    /// | `taskfork_server_workers_forked_total` | counter | `server` |
    /// | `taskfork_server_connections_refused_total` | counter | `server` |
    ///
    /// The label `server` is the name of the server.
    ///
    /// ```no_run
    /// taskfork::server::ServerStatus::read("/run/adder.sock.status")?.record_metrics();
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn record_metrics(&self) {
        describe_gauge!("taskfork_server_workers", "workers of a server, by state");
        describe_gauge!("taskfork_server_checkouts_queued", "checkouts that wait for a worker");
        describe_gauge!("taskfork_server_sandbox", "1, with the level of the workers' sandbox");
        describe_counter!("taskfork_server_deaths_total", "workers that have ended, by cause");
        describe_counter!("taskfork_server_workers_forked_total", "workers that were forked");
        describe_counter!("taskfork_server_connections_refused_total", "connections refused");
        let server = || self.name.clone();
        for state in WorkerStatus::STATES {
            let count = self.workers.iter().filter(|worker| worker.state == state).count();
            gauge!("taskfork_server_workers", "server" => server(), "state" => state)
                .set(count as f64);
        }
        gauge!("taskfork_server_checkouts_queued", "server" => server()).set(self.queued as f64);
        let level = self.sandbox.clone().unwrap_or_else(|| "off".to_owned());
        gauge!("taskfork_server_sandbox", "server" => server(), "level" => level).set(1.0);
        for (cause, &count) in &self.deaths {
            let labels = [("server", server()), ("cause", cause.clone())];
            counter!("taskfork_server_deaths_total", &labels).absolute(count);
        }
        counter!("taskfork_server_workers_forked_total", "server" => server())
            .absolute(self.forked);
        counter!("taskfork_server_connections_refused_total", "server" => server())
            .absolute(self.refused);
    }
}
