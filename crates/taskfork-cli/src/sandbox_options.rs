//! The options of a pool that say what its workers may do: the sandbox, the user, and the environment.

use clap::ValueEnum;
use serde::Deserialize;
use taskfork::ServerBuilder;
use taskfork::sandbox::{Level, Sandbox};

use crate::config::PoolOptions;

/// A level of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SandboxLevel {
    /// Nothing is forbidden
    Off,
    /// No sockets, and no signals to other processes; files and programs as its user may
    NoNetwork,
    /// No files but those of --allow-read and --allow-write, no network, no programs
    Files,
    /// No files, no network, no programs, no other processes
    Compute,
    /// As compute, and accepts connections
    Gateway,
    /// As compute, and what Python needs to start
    Python,
    /// As compute, and what Node needs to start
    Node,
    /// As compute, and what Perl needs to start
    Perl,
}

impl From<SandboxLevel> for Level {
    fn from(level: SandboxLevel) -> Self {
        match level {
            SandboxLevel::Off => Self::Off,
            SandboxLevel::NoNetwork => Self::NoNetwork,
            SandboxLevel::Files => Self::Files,
            SandboxLevel::Compute => Self::Compute,
            SandboxLevel::Gateway => Self::Gateway,
            SandboxLevel::Python => Self::Python,
            SandboxLevel::Node => Self::Node,
            SandboxLevel::Perl => Self::Perl,
        }
    }
}

impl PoolOptions {
    /// The first option that opens a sandbox although there is none.
    pub(crate) fn opening_without_sandbox(&self) -> Option<&'static str> {
        let openings = [
            ("allow_read", !self.allow_read.is_empty()),
            ("allow_write", !self.allow_write.is_empty()),
            ("allow_execute", !self.allow_execute.is_empty()),
            ("allow_connect", !self.allow_connect.is_empty()),
            ("allow_unix", !self.allow_unix.is_empty()),
            ("allow_accept", self.allow_accept),
            ("allow_spawn", self.allow_spawn),
            ("max_result", self.max_result.is_some()),
            ("sandbox_best_effort", self.sandbox_best_effort),
            ("sandbox_kill", self.sandbox_kill),
        ];
        if self.sandbox.is_some_and(|level| level != SandboxLevel::Off) {
            return None;
        }
        openings.into_iter().find(|(_, is_set)| *is_set).map(|(option, _)| option)
    }

    /// Sets what workers may do.
    pub(crate) fn confine(&self, mut server: ServerBuilder) -> ServerBuilder {
        if let Some(level) = self.sandbox {
            server = server.sandbox(self.sandbox(level.into()));
        }
        if let Some(size) = self.scratch {
            server = server.scratch(size.0);
        }
        if let Some(folder) = &self.scratch_folder {
            server = server.scratch_folder(folder);
        }
        if let Some(user) = &self.user {
            server = server.user(user);
        }
        if let Some(group) = &self.group {
            server = server.group(group);
        }
        if let Some(groups) = &self.groups {
            server = server.groups(groups);
        }
        if let Some(names) = &self.clear_env {
            server = server.clear_env(names);
        }
        if let Some(mask) = self.umask {
            server = server.umask(mask.0);
        }
        server.no_new_privs(!self.allow_new_privs)
    }

    fn sandbox(&self, level: Level) -> Sandbox {
        let mut sandbox = Sandbox::of_level(level);
        // Without its program the pool could start no worker.
        if let Some(program) = self.command.first().and_then(|program| which::which(program).ok()) {
            sandbox = sandbox.execute(program);
        }
        for path in &self.allow_read {
            sandbox = sandbox.read(path);
        }
        for path in &self.allow_write {
            sandbox = sandbox.write(path);
        }
        for path in &self.allow_execute {
            sandbox = sandbox.execute(path);
        }
        for port in &self.allow_connect {
            sandbox = sandbox.connect_tcp(*port);
        }
        for path in &self.allow_unix {
            sandbox = sandbox.unix_socket(path);
        }
        if let Some(size) = self.max_result {
            sandbox = sandbox.max_result(usize::try_from(size.0).unwrap_or(usize::MAX));
        }
        if self.allow_accept {
            sandbox = sandbox.accept_connections();
        }
        if self.allow_spawn {
            sandbox = sandbox.spawn_programs();
        }
        if self.sandbox_best_effort {
            sandbox = sandbox.best_effort();
        }
        if self.sandbox_kill { sandbox.kill() } else { sandbox }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> PoolOptions {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn each_level_has_the_name_that_the_library_gives_it() {
        for level in Level::ALL {
            let read = SandboxLevel::from_str(level.name(), false).unwrap();
            assert_eq!(Level::from(read), level);
            assert_eq!(pool(&format!("sandbox = \"{level}\"")).sandbox, Some(read));
        }
    }

    #[test]
    fn openings_of_a_file_are_those_of_the_sandbox() {
        let pool = pool(
            "sandbox = \"compute\"\nallow_read = [\"/usr/share\"]\nallow_write = [\"/tmp\"]\n\
             allow_execute = [\"/bin/true\"]\nallow_connect = [5432]\nallow_unix = [\"/run/a\"]\n\
             allow_accept = true\nallow_spawn = true\nsandbox_best_effort = true\nsandbox_kill = true\nmax_result = \"1MiB\"",
        );
        let expected = Sandbox::compute()
            .read("/usr/share")
            .write("/tmp")
            .execute("/bin/true")
            .connect_tcp(5432)
            .unix_socket("/run/a")
            .accept_connections()
            .spawn_programs()
            .best_effort()
            .kill()
            .max_result(1 << 20);
        assert_eq!(pool.sandbox(Level::Compute), expected);
        assert_eq!(pool.opening_without_sandbox(), None);
    }

    #[test]
    fn an_opening_needs_a_sandbox() {
        assert_eq!(pool("allow_connect = [80]").opening_without_sandbox(), Some("allow_connect"));
        assert_eq!(pool("allow_accept = true").opening_without_sandbox(), Some("allow_accept"));
        let off = pool("sandbox = \"off\"\nallow_spawn = true");
        assert_eq!(off.opening_without_sandbox(), Some("allow_spawn"));
        assert_eq!(pool("user = \"nobody\"").opening_without_sandbox(), None);
    }

    #[test]
    fn a_user_is_a_name_or_a_number() {
        assert_eq!(pool("user = 65534\ngroup = \"nogroup\"").user.as_deref(), Some("65534"));
    }
}
