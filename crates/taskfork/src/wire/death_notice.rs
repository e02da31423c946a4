//! The news of a worker's death.

use super::WireError;
use super::msgpack::{Reader, put_array, put_bool, put_float, put_int, put_map, put_str, put_uint};
use super::native;
use crate::error::{Activity, End};

/// What the server knows of a worker's end.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct DeathNotice {
    pub(crate) pid: u32,
    pub(crate) end: End,
    pub(crate) reason: Option<String>,
    pub(crate) during: Option<Activity>,
    /// How many calls of this connection the worker had begun or skipped.
    pub(crate) calls: u64,
    /// The last that the worker wrote to standard error.
    pub(crate) stderr: Option<String>,
    /// For how long it had been at it, in seconds, if it was killed for that.
    pub(crate) ran: Option<f64>,
    /// Where it was then.
    pub(crate) stack: Option<String>,
    /// Why there is none.
    pub(crate) no_stack: Option<String>,
    /// It was killed as the call's own time was over.
    pub(crate) timed_out: bool,
}

impl DeathNotice {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut notice = Self::default();
        native::meta(reader, |key, reader| {
            match key {
                "pid" => notice.pid = reader.int()?,
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

pub(crate) fn put_death(out: &mut Vec<u8>, notice: &DeathNotice) {
    let end = match notice.end {
        End::Exited(status) => Some(("exit", status)),
        End::Signaled(signal) => Some(("signal", signal)),
        End::Unknown => None,
    };
    let optional = [
        end.is_some(),
        notice.reason.is_some(),
        notice.during.is_some(),
        notice.stderr.is_some(),
        notice.ran.is_some(),
        notice.stack.is_some(),
        notice.no_stack.is_some(),
        notice.timed_out,
    ];
    put_array(out, 2);
    put_uint(out, native::DEATH);
    put_map(out, 2 + optional.iter().map(|&there| u32::from(there)).sum::<u32>());
    put_str(out, "pid");
    put_uint(out, u64::from(notice.pid));
    put_str(out, "calls");
    put_uint(out, notice.calls);
    if let Some((key, number)) = end {
        put_str(out, key);
        put_int(out, i64::from(number));
    }
    if let Some(ran) = notice.ran {
        put_str(out, "ran");
        put_float(out, ran);
    }
    if notice.timed_out {
        put_str(out, "timed_out");
        put_bool(out, true);
    }
    let texts = [
        ("reason", &notice.reason),
        ("stderr", &notice.stderr),
        ("stack", &notice.stack),
        ("no_stack", &notice.no_stack),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            put_str(out, key);
            put_str(out, text);
        }
    }
    if let Some(during) = notice.during {
        put_str(out, "during");
        let known = ACTIVITIES.iter().find(|(activity, _)| *activity == during);
        put_str(out, known.map_or("", |(_, name)| name));
    }
}
