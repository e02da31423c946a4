//! The table of workers: its columns, their order, and which of them fit.

use std::cmp::Ordering;

use taskfork::Progress;
use taskfork::server::WorkerStatus;

use super::cpu_usage::CpuUsage;
use crate::status::{self, COLUMNS};

/// The number of columns: those of `status`, and the use of the processor.
pub(super) const COUNT: usize = COLUMNS.len() + 1;

/// The header of the column that `status` does not have.
const CPU: &str = "cpu";

/// The place of that column: in front of the client, which is the widest.
const CPU_COLUMN: usize = COLUMNS.len() - 1;

/// The greatest width of a column.
const MAX_WIDTH: usize = 24;

/// The column by which workers are sorted, and the direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) column: usize,
    pub(super) descending: bool,
}

impl Order {
    /// The order by the next column. It begins with the largest value for times, counts and sizes.
    pub(super) fn next(self) -> Self {
        let column = (self.column + 1) % COUNT;
        Self {
            column,
            descending: matches!(
                name(column),
                "for" | "progress" | "calls" | "checkouts" | "memory" | CPU
            ),
        }
    }

    pub(super) fn reversed(self) -> Self {
        Self { descending: !self.descending, ..self }
    }

    /// Compares two workers. Equal workers are in the order of their numbers.
    pub(super) fn compare(self, cpu: &CpuUsage, a: &WorkerStatus, b: &WorkerStatus) -> Ordering {
        let client = |worker: &WorkerStatus| worker.peer.as_ref().map(ToString::to_string);
        let share = |worker: &WorkerStatus| cpu.percent(worker.pid).unwrap_or(-1.0);
        let share_done = |worker: &WorkerStatus| {
            worker.progress.as_ref().and_then(Progress::fraction).unwrap_or(-1.0)
        };
        let order = match name(self.column) {
            "pid" => a.pid.cmp(&b.pid),
            "state" => a.state.cmp(&b.state),
            "for" => a.seconds.total_cmp(&b.seconds),
            "method" => a.method.cmp(&b.method),
            "progress" => share_done(a).total_cmp(&share_done(b)),
            "calls" => a.calls.cmp(&b.calls),
            "checkouts" => a.checkouts.cmp(&b.checkouts),
            "memory" => a.memory.cmp(&b.memory),
            CPU => share(a).total_cmp(&share(b)),
            "client" => client(a).cmp(&client(b)),
            _ => a.number.cmp(&b.number),
        };
        let order = if self.descending { order.reverse() } else { order };
        order.then(a.number.cmp(&b.number))
    }
}

pub(super) fn name(column: usize) -> &'static str {
    match column.cmp(&CPU_COLUMN) {
        Ordering::Equal => CPU,
        Ordering::Less => COLUMNS[column],
        Ordering::Greater => COLUMNS[COLUMNS.len() - 1],
    }
}

/// The headers of all columns. An arrow marks the column of the order, except in the default order.
pub(super) fn headers(order: Order) -> [String; COUNT] {
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
pub(super) fn row(worker: &WorkerStatus, cpu: &CpuUsage) -> [String; COUNT] {
    let mut cells = status::row(worker).into_iter();
    let share = cpu.percent(worker.pid).map(|share| format!("{share:.0}%"));
    std::array::from_fn(|column| match column {
        CPU_COLUMN => share.clone().unwrap_or_default(),
        _ => cells.next().unwrap_or_default(),
    })
}

/// The visible columns and their widths: the worker's number, and the columns from `first` on that fit the screen.
/// The first of `rows` has the headers.
pub(super) fn visible_columns(
    rows: &[[String; COUNT]],
    first: usize,
    screen_width: u16,
) -> Vec<(usize, u16)> {
    let width = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max();
        u16::try_from(widest.unwrap_or(0).min(MAX_WIDTH)).unwrap_or(u16::MAX)
    };
    let mut left = screen_width;
    let mut shown = Vec::new();
    for column in [0].into_iter().chain(first.max(1)..COUNT) {
        // A space separates two columns.
        let needed = width(column) + u16::from(!shown.is_empty());
        // The first column after the number is always shown, even if it is cut.
        if needed > left && shown.len() > 1 {
            break;
        }
        shown.push((column, width(column)));
        left = left.saturating_sub(needed);
    }
    shown
}
