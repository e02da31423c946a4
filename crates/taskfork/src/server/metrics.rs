//! A server's figures for the recorder of the crate `metrics` of whatever program has asked for
//! them: a server itself has no thread to spare for one.

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::status::{self, ServerStatus};

impl ServerStatus {
    /// Gives these figures to the program's recorder of the crate `metrics`, with the feature of
    /// that name: `taskfork_server_workers` by `state`, `taskfork_server_deaths_total` by `cause`,
    /// `taskfork_server_checkouts_queued`, `taskfork_server_workers_forked_total`,
    /// `taskfork_server_connections_refused_total`; all with the server's name as `server`. For a program
    /// that [reads](Self::read) them from time to time.
    ///
    /// ```no_run
    /// taskfork::server::ServerStatus::read("/run/adder.sock.status")?.record_metrics();
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn record_metrics(&self) {
        describe_gauge!("taskfork_server_workers", "workers of a server, by state");
        describe_gauge!("taskfork_server_checkouts_queued", "checkouts that wait for a worker");
        describe_counter!("taskfork_server_deaths_total", "workers that have ended, by cause");
        describe_counter!("taskfork_server_workers_forked_total", "workers that were forked");
        describe_counter!("taskfork_server_connections_refused_total", "connections refused");
        let server = || self.name.clone();
        for state in status::STATES {
            let count = self.workers.iter().filter(|worker| worker.state == state).count();
            gauge!("taskfork_server_workers", "server" => server(), "state" => state)
                .set(count as f64);
        }
        gauge!("taskfork_server_checkouts_queued", "server" => server()).set(self.queued as f64);
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
