//! Serves a client that speaks JSON, the protocol of AnyEvent::Task. The answer is encoded for the native
//! protocol first and then translated.

use rmpv::Value;

use super::connection::{Connection, ConnectionError};
use super::scoreboard::Phase;
use super::state::{ExitReason, Worker};
use super::telemetry::{self, RequestedTelemetry};
use crate::clock::now;
use crate::error::{CallError, Failure, Needs};
use crate::wire::WireError;
use crate::wire::arguments::Arguments;
use crate::wire::frame::{ATOMIC_WRITE, HEADER_LEN};
use crate::wire::gather_frame::GatherFrame;
use crate::wire::native::FromWorker;
use crate::wire::perl::{self, FromClient, Scanner};
use crate::wire::values::ValueFormat;
use crate::{context, trace_context};

/// The protocol has no way to request a level.
const EVERYTHING: log_defer::Level = log_defer::Level::ALL;

impl Connection {
    /// Waits for a message and reads it.
    pub(super) fn read_json_message(
        &mut self,
        scanner: &mut Scanner,
    ) -> Result<FromClient, ConnectionError> {
        let place = self.read_json(scanner)?;
        Ok(perl::from_client(self.text(place), self.max_frame())?)
    }
}

impl<S: 'static> Worker<'_, S> {
    /// Handles the first message, if it has been read, or waits for a message. Returns whether it ended a
    /// checkout.
    pub(super) fn serve_json(
        &mut self,
        connection: &mut Connection,
        scanner: &mut Scanner,
        first: &mut Option<FromClient>,
    ) -> Result<bool, ExitReason> {
        let message = match first.take() {
            Some(first) => first,
            None => connection.read_json_message(scanner)?,
        };
        let answer = match message {
            FromClient::Done => return self.end_checkout().map(|()| true),
            FromClient::Call(args) => self.answer_json(&args)?,
            FromClient::Refused(reason) => {
                let mut answer = Vec::new();
                let needs = Needs::default();
                let message =
                    CallError::<Failure>::Arguments { message: reason, needs }.to_string();
                perl::put_error(&mut answer, None, &message);
                answer
            }
        };
        let phase = match answer.len() {
            ..=ATOMIC_WRITE => Phase::Answering,
            _ => Phase::AnsweringLong,
        };
        self.slot.enter(phase)?;
        connection.write(&GatherFrame { bytes: answer, ..GatherFrame::default() })?;
        self.interface.on_answer_sent();
        self.slot.enter(Phase::Held)?;
        Ok(false)
    }

    fn answer_json(&mut self, args: &[Value]) -> Result<Vec<u8>, ExitReason> {
        let first = args.first().and_then(Value::as_str);
        let method = first.filter(|first| self.interface.is_method_name(first));
        let args = &args[usize::from(method.is_some())..];
        let mut encoded = Vec::new();
        for value in args {
            // Writing to memory cannot fail.
            let _ = rmpv::encode::write_value(&mut encoded, value);
        }
        self.slot.set_call(method.unwrap_or_default(), None, None);
        self.slot.enter_at(Phase::Busy, Some(now()))?;
        if self.slot.is_client_gone() {
            return Err(ExitReason::Finished);
        }
        telemetry::begin_call(RequestedTelemetry {
            log: Some(EVERYTHING),
            trace: None,
            places: false,
        });
        trace_context::set(None);
        context::set(None);
        let args = Arguments::new(args.len(), &encoded).with_format(ValueFormat::Json);
        self.call(method, None, args, None)?;
        let log = telemetry::end_call().into_log();
        let native = std::mem::take(&mut self.out).copy_from(HEADER_LEN);
        let mut answer = Vec::new();
        let written = match FromWorker::decode(&native)? {
            FromWorker::Ok { value, .. } => perl::put_result(&mut answer, log.as_ref(), value),
            FromWorker::Error { body, .. } => Err(perl::error_text(body, method)),
            other => return Err(WireError::Malformed(format!("{other:?} is no answer")).into()),
        };
        let written = written.and_then(|()| match answer.len() <= self.max_answer {
            true => Ok(()),
            false => {
                let (length, limit) = (answer.len(), self.max_answer);
                answer.clear();
                // Such clients have no option for it, and no `Blob`.
                let error = WireError::TooLarge { length, limit };
                Err(error.with_advice("return less at once, or raise `max_frame` of the server"))
            }
        });
        if let Err(message) = written {
            perl::put_error(&mut answer, log.as_ref(), &message);
        }
        Ok(answer)
    }
}
