//! The message by which the server tells a client that its worker has died.

use super::WireError;
use super::fields::{MapWriter, read_map};
use super::msgpack::{Reader, put_array, put_int, put_uint};
use super::native::kind::DEATH;
use crate::error::{Activity, End};

/// What the server knows about a worker's exit.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct DeathNotice {
    pub(crate) pid: u32,
    /// The process id of the program that was the worker.
    pub(crate) program: Option<u32>,
    pub(crate) end: End,
    pub(crate) reason: Option<String>,
    pub(crate) during: Option<Activity>,
    /// How many calls of this connection the worker had begun or skipped.
    pub(crate) calls: u64,
    /// The end of what the worker wrote to standard error.
    pub(crate) stderr: Option<String>,
    /// How long the activity had taken, in seconds, if the worker was killed because it took too long.
    pub(crate) ran: Option<f64>,
    /// The worker's stack at that time.
    pub(crate) stack: Option<String>,
    /// Why the stack is missing.
    pub(crate) no_stack: Option<String>,
    /// The worker was killed because the call's own timeout had passed.
    pub(crate) timed_out: bool,
}

impl DeathNotice {
    /// Reads the part of the message after its kind.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut notice = Self::default();
        read_map(reader, |key, reader| {
            match key {
                "pid" => notice.pid = reader.int()?,
                "program" => notice.program = Some(reader.int()?),
                "exit" => notice.end = End::Exited(reader.int()?),
                "signal" => notice.end = End::Signaled(reader.int()?),
                "reason" => notice.reason = Some(reader.str()?.to_owned()),
                "during" => notice.during = activity(reader.str()?),
                "stderr" => notice.stderr = Some(reader.str()?.to_owned()),
                "calls" => notice.calls = reader.int()?,
                "ran" => notice.ran = Some(reader.float()?),
                "stack" => notice.stack = Some(reader.str()?.to_owned()),
                "no_stack" => notice.no_stack = Some(reader.str()?.to_owned()),
                "timed_out" => notice.timed_out = reader.bool()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(notice)
    }

    /// Appends the message.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_array(out, 2);
        put_uint(out, DEATH);
        let mut map = MapWriter::new(out);
        map.uint("pid", u64::from(self.pid));
        map.optional_uint("program", self.program.map(u64::from));
        map.uint("calls", self.calls);
        match self.end {
            End::Exited(status) => put_int(map.key("exit"), i64::from(status)),
            End::Signaled(signal) => put_int(map.key("signal"), i64::from(signal)),
            End::Unknown => {}
        }
        map.optional_float("ran", self.ran);
        map.flag("timed_out", self.timed_out);
        map.optional_str("reason", self.reason.as_deref());
        map.optional_str("stderr", self.stderr.as_deref());
        map.optional_str("stack", self.stack.as_deref());
        map.optional_str("no_stack", self.no_stack.as_deref());
        if let Some(during) = self.during {
            let known = ACTIVITIES.iter().find(|(activity, _)| *activity == during);
            map.str("during", known.map_or("", |(_, name)| name));
        }
    }
}

const ACTIVITIES: [(Activity, &str); 4] = [
    (Activity::Setup, "setup"),
    (Activity::Idle, "idle"),
    (Activity::Call, "call"),
    (Activity::CheckoutDone, "checkout_done"),
];

fn activity(name: &str) -> Option<Activity> {
    ACTIVITIES.iter().find(|(_, known)| *known == name).map(|(activity, _)| *activity)
}
