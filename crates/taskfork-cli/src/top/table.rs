//! The table of workers: its columns, their order, and which of them fit.

use std::cmp::Ordering;

use taskfork::server::WorkerStatus;

use super::processors::Processors;
use crate::status::{self, COLUMNS};

/// How many columns there are: those of `status`, and the processor's.
pub(super) const COUNT: usize = COLUMNS.len() + 1;

/// The head of the last column, which `status` does not have.
const CPU: &str = "cpu";

/// No column is wider.
const WIDEST: usize = 24;

/// By which column the workers are sorted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) column: usize,
    pub(super) descending: bool,
}

impl Order {
    /// By the next column: from the largest if it has times, counts or sizes.
    pub(super) fn next(self) -> Self {
        let column = (self.column + 1) % COUNT;
        Self {
            column,
            descending: matches!(name(column), "for" | "calls" | "checkouts" | "memory" | CPU),
        }
    }

    pub(super) fn reversed(self) -> Self {
        Self { descending: !self.descending, ..self }
    }

    /// How two workers stand to each other. Those that are equal stay in the order of their numbers.
    pub(super) fn compare(self, cpu: &Processors, a: &WorkerStatus, b: &WorkerStatus) -> Ordering {
        let share = |worker: &WorkerStatus| cpu.share(worker.pid).unwrap_or(-1.0);
        let order = match name(self.column) {
            "pid" => a.pid.cmp(&b.pid),
            "state" => a.state.cmp(&b.state),
            "for" => a.seconds.total_cmp(&b.seconds),
            "method" => a.method.cmp(&b.method),
            "calls" => a.calls.cmp(&b.calls),
            "checkouts" => a.checkouts.cmp(&b.checkouts),
            "memory" => a.memory.cmp(&b.memory),
            CPU => share(a).total_cmp(&share(b)),
            _ => a.number.cmp(&b.number),
        };
        let order = if self.descending { order.reverse() } else { order };
        order.then(a.number.cmp(&b.number))
    }
}

pub(super) fn name(column: usize) -> &'static str {
    COLUMNS.get(column).copied().unwrap_or(CPU)
}

/// The heads of all columns; an arrow marks the one that the workers are sorted by, unless it is their number.
pub(super) fn heads(order: Order) -> [String; COUNT] {
    std::array::from_fn(|column| {
        let is_marked = order.column == column && order != Order::default();
        let arrow = match (is_marked, order.descending) {
            (false, _) => "",
            (true, false) => "▲",
            (true, true) => "▼",
        };
        format!("{}{arrow}", name(column))
    })
}

/// A worker as a row of the table.
pub(super) fn row(worker: &WorkerStatus, cpu: &Processors) -> [String; COUNT] {
    let mut cells = status::row(worker).into_iter();
    let share = cpu.share(worker.pid).map(|share| format!("{share:.0}%")).unwrap_or_default();
    std::array::from_fn(|_| cells.next().unwrap_or_else(|| share.clone()))
}

/// The columns that are shown in a room so wide, with their widths: the worker's number, and as many others as
/// fit from `first` on. The first of `rows` are the heads.
pub(super) fn fitting(rows: &[[String; COUNT]], first: usize, room: u16) -> Vec<(usize, u16)> {
    let width = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max();
        u16::try_from(widest.unwrap_or(0).min(WIDEST)).unwrap_or(u16::MAX)
    };
    let mut left = room;
    let mut shown = Vec::new();
    for column in [0].into_iter().chain(first.max(1)..COUNT) {
        // Between two columns is a space.
        let needed = width(column) + u16::from(!shown.is_empty());
        // The first of the others is shown even where it is cut.
        if needed > left && shown.len() > 1 {
            break;
        }
        shown.push((column, width(column)));
        left = left.saturating_sub(needed);
    }
    shown
}
