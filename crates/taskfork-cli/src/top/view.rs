//! The screen of `top`, and the effects of its keys.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;
use std::time::Instant;

use log_defer::printable;
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table, TableState, Wrap};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use taskfork::server::{ServerStatus, WorkerStatus};

use super::Shown;
use super::cpu_usage::CpuUsage;
use super::events::{Request, TopEvent};
use super::table::{self, COUNT, Order};
use crate::status;

/// What a key does to the program.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeyEffect {
    None,
    Quit,
    /// Stop this process, as the terminal does at Ctrl-Z.
    Suspend,
}

/// A worker that is killed if the user confirms it. The descriptor refers to the worker even if its process id is
/// used again.
#[derive(Debug)]
struct PendingKill {
    number: u64,
    pid: u32,
    process: OwnedFd,
}

pub(super) struct View {
    status: ServerStatus,
    requests: Sender<Request>,
    /// The calls of all workers at the last status, and the time of that status.
    before: Option<(u64, Instant)>,
    rate: f64,
    cpu: CpuUsage,
    order: Order,
    /// The first column beside the worker's number.
    first: usize,
    /// The number of the selected worker.
    selected: Option<u64>,
    table: TableState,
    /// How many workers fit the screen.
    page: usize,
    /// The worker to kill, until the user answers.
    pending_kill: Option<PendingKill>,
    /// The first line of the list of keys, if it is shown.
    help: Option<u16>,
    /// The result of the last action.
    message: String,
}

/// The list of keys.
const KEYS: [&str; 11] = [
    "↑ ↓       choose",
    "PgUp PgDn a page",
    "Home End  first, last",
    "← →       columns",
    "s sort by the next",
    "r reverse the order",
    "k kill (asks)",
    "d dismiss when done",
    "Ctrl-Z stop",
    "? this list",
    "q quit",
];

/// Below this height the header and the footer have one line each.
const MIN_FULL_HEIGHT: u16 = 10;

impl Shown for View {
    fn key(&mut self, key: KeyEvent) -> KeyEffect {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return KeyEffect::Quit,
            KeyCode::Char('z') if control => return KeyEffect::Suspend,
            _ if control => return KeyEffect::None,
            _ => {}
        }
        if let Some(pending_kill) = self.pending_kill.take() {
            match key.code {
                KeyCode::Char('y' | 'Y') => self.kill(&pending_kill),
                _ => self.message = format!("worker {} was not killed", pending_kill.number),
            }
            return KeyEffect::None;
        }
        if let Some(line) = self.help {
            let last = KEYS.len() as u16 - 1;
            self.help = match key.code {
                KeyCode::Down | KeyCode::PageDown => Some((line + 1).min(last)),
                KeyCode::Up | KeyCode::PageUp => Some(line.saturating_sub(1)),
                KeyCode::Char('q') => return KeyEffect::Quit,
                _ => None,
            };
            return KeyEffect::None;
        }
        let row = self.selected_row();
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return KeyEffect::Quit,
            KeyCode::Down | KeyCode::Char('j') => self.select(row + 1),
            KeyCode::Up => self.select(row.saturating_sub(1)),
            KeyCode::PageDown => self.select(row + self.page),
            KeyCode::PageUp => self.select(row.saturating_sub(self.page)),
            KeyCode::Home | KeyCode::Char('g') => self.select(0),
            KeyCode::End | KeyCode::Char('G') => self.select(usize::MAX),
            KeyCode::Right => self.first = (self.first + 1).min(COUNT - 1),
            KeyCode::Left => self.first = (self.first - 1).max(1),
            KeyCode::Char('s') => self.order_by(self.order.next()),
            KeyCode::Char('r') => self.order_by(self.order.reversed()),
            KeyCode::Char('k') => self.ask_before_kill(),
            KeyCode::Char('d') => self.dismiss(),
            KeyCode::Char('?' | 'h') => self.help = Some(0),
            _ => {}
        }
        KeyEffect::None
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let (head, foot) = if area.height < MIN_FULL_HEIGHT { (1, 1) } else { (3, 2) };
        let [head, body, foot] = Layout::vertical([
            Constraint::Length(head),
            Constraint::Fill(1),
            Constraint::Length(foot),
        ])
        .areas(area);
        self.draw_head(frame, head);
        match self.help {
            Some(line) => {
                let keys: Vec<Line<'_>> = KEYS.into_iter().map(Line::from).collect();
                frame.render_widget(Paragraph::new(keys).scroll((line, 0)), body);
            }
            None => self.draw_workers(frame, body),
        }
        self.draw_foot(frame, foot);
    }

    fn handle_answer(&mut self, event: TopEvent) {
        match event {
            TopEvent::StatusRead(answer) => self.update(answer),
            TopEvent::Dismissed(worker, answer) => self.dismissed(worker, answer),
            _ => {}
        }
    }
}

impl View {
    pub(super) fn new(status: ServerStatus, requests: Sender<Request>) -> Self {
        let mut view = Self {
            status: status.clone(),
            requests,
            before: None,
            rate: 0.0,
            cpu: CpuUsage::default(),
            order: Order::default(),
            first: 1,
            selected: None,
            table: TableState::default(),
            page: 1,
            pending_kill: None,
            help: None,
            message: String::new(),
        };
        view.show(status);
        view
    }

    fn update(&mut self, answer: io::Result<ServerStatus>) {
        match answer {
            Ok(status) => self.show(status),
            Err(error) => {
                self.message =
                    printable(&format!("the server does not answer: {error}")).into_owned();
            }
        }
    }

    fn dismissed(&mut self, number: u64, answer: io::Result<ServerStatus>) {
        match answer {
            Ok(status) => {
                self.message = format!("worker {number} leaves when its checkout is done");
                self.show(status);
            }
            Err(error) => self.message = format!("worker {number} cannot be dismissed: {error}"),
        }
    }

    fn show(&mut self, status: ServerStatus) {
        let calls = status.workers.iter().map(|worker| worker.calls).sum();
        if let Some((before, since)) = self.before {
            let time = since.elapsed().as_secs_f64().max(0.001);
            // The calls of workers that have ended are missing in the sum.
            self.rate = u64::saturating_sub(calls, before) as f64 / time;
        }
        self.before = Some((calls, Instant::now()));
        self.cpu.update(&status);
        self.status = status;
        self.sort();
    }

    fn sort(&mut self) {
        let (order, cpu) = (self.order, &self.cpu);
        self.status.workers.sort_by(|a, b| order.compare(cpu, a, b));
        let at = self.selected_row();
        self.select(at);
    }

    /// The row of the selected worker, or its last row if the worker has ended.
    fn selected_row(&self) -> usize {
        let number = |worker: &WorkerStatus| Some(worker.number) == self.selected;
        let row = self.status.workers.iter().position(number);
        row.or(self.table.selected()).unwrap_or(0)
    }

    /// Selects the worker of this row, or of the last row if there are fewer.
    fn select(&mut self, row: usize) {
        let row = row.min(self.status.workers.len().saturating_sub(1));
        self.selected = self.status.workers.get(row).map(|worker| worker.number);
        self.table.select(self.selected.map(|_| row));
    }

    fn order_by(&mut self, order: Order) {
        self.order = order;
        let direction = if order.descending { "largest first" } else { "smallest first" };
        self.message = format!("by {}, {direction}", table::name(order.column));
        self.sort();
    }

    fn selected_worker(&self) -> Option<&WorkerStatus> {
        self.status.workers.iter().find(|worker| Some(worker.number) == self.selected)
    }

    /// Asks whether to kill the selected worker.
    fn ask_before_kill(&mut self) {
        let Some((number, pid)) = self.selected_worker().map(|worker| (worker.number, worker.pid))
        else {
            return;
        };
        let Some(process) = Pid::from_raw(pid.cast_signed()) else { return };
        match pidfd_open(process, PidfdFlags::empty()) {
            Ok(process) => self.pending_kill = Some(PendingKill { number, pid, process }),
            Err(error) => self.message = format!("worker {number} cannot be killed: {error}"),
        }
        // The worker may have ended before the descriptor was opened, and its process id may be in use again.
        // The new status shows this before the user answers.
        self.request(Request::Status);
    }

    fn kill(&mut self, PendingKill { number, pid, process }: &PendingKill) {
        let is_there = |worker: &WorkerStatus| (worker.number, worker.pid) == (*number, *pid);
        if !self.status.workers.iter().any(is_there) {
            self.message = format!("worker {number} has ended already");
            return;
        }
        self.message = match pidfd_send_signal(process, Signal::KILL) {
            Ok(()) => format!("worker {number} was killed (process {pid})"),
            Err(error) => format!("worker {number} cannot be killed: {error}"),
        };
        self.request(Request::Status);
    }

    fn dismiss(&mut self) {
        let Some(number) = self.selected else { return };
        self.message = format!("worker {number} is told to leave");
        self.request(Request::Dismiss(number));
    }

    fn request(&mut self, request: Request) {
        if self.requests.send(request).is_err() {
            self.message = "the server is asked no more".to_owned();
        }
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let text = if area.height > 1 {
            format!("{}\n{:.0} calls/s", status::headline(&self.status), self.rate)
        } else {
            let busy = self.status.workers.iter().filter(|worker| worker.state == "busy").count();
            let workers = self.status.workers.len();
            let (queued, name) = (self.status.queued, printable(&self.status.name));
            // The end may be cut, so the most important part comes first.
            format!("{busy}/{workers} busy, {queued} wait  {:.0}/s  {name}", self.rate)
        };
        let head = Paragraph::new(text);
        let head = if area.height > 1 { head.wrap(Wrap { trim: true }) } else { head };
        frame.render_widget(head, area);
    }

    fn draw_workers(&mut self, frame: &mut Frame<'_>, area: Rect) {
        self.page = usize::from(area.height.saturating_sub(1)).max(1);
        let workers = &self.status.workers;
        let cells = workers.iter().map(|worker| table::row(worker, &self.cpu));
        let cells: Vec<_> = [table::headers(self.order)].into_iter().chain(cells).collect();
        let columns = table::visible_columns(&cells, self.first, area.width);
        let shown = |cells: &[String; COUNT]| {
            Row::new(columns.iter().map(|(column, _)| cells[*column].clone()).collect::<Vec<_>>())
        };
        let rows =
            workers.iter().zip(&cells[1..]).map(|(worker, cells)| match worker.state.as_str() {
                "busy" | "setup" => shown(cells).style(Style::new().bold()),
                "idle" | "spare" => shown(cells).style(Style::new().dim()),
                _ => shown(cells),
            });
        let headers = shown(&cells[0]);
        let widths = columns.iter().map(|(_, width)| Constraint::Length(*width));
        let table = Table::new(rows, widths)
            .header(headers.style(Style::new().add_modifier(Modifier::UNDERLINED)))
            .row_highlight_style(Style::new().reversed());
        frame.render_stateful_widget(table, area, &mut self.table);
    }

    fn draw_foot(&self, frame: &mut Frame<'_>, area: Rect) {
        let fits = |text: &String| text.chars().count() <= usize::from(area.width);
        let message = match &self.pending_kill {
            Some(PendingKill { number, pid, .. }) => {
                let long = format!(
                    "kill worker {number} (process {pid})? y kills it, any other key does not"
                );
                let short = format!("kill {number}? y/n");
                Some(long).filter(fits).unwrap_or(short)
            }
            None => self.message.clone(),
        };
        let keys =
            "↑↓ choose a worker   k kill it   d dismiss it   s sort   ? keys   q quit".to_owned();
        let keys = Some(keys).filter(fits).unwrap_or_else(|| "? keys  q quit".to_owned());
        let lines = match (area.height > 1, message.is_empty()) {
            (true, _) => vec![Line::from(message), Line::from(keys).dim()],
            (false, false) => vec![Line::from(message)],
            (false, true) => vec![Line::from(keys).dim()],
        };
        frame.render_widget(Paragraph::new(lines), area);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn status(workers: &str) -> ServerStatus {
        let text = format!(
            r#"{{"name": "pictures", "pid": 1, "seconds": 1.0, "accepting": true, "max_workers": 9,
            "forked": 1, "refused": 0, "deaths": {{}}, "workers": [{workers}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn worker(number: u64, pid: u32, state: &str, calls: u64) -> String {
        format!(
            r#"{{"number": {number}, "pid": {pid}, "state": "{state}", "seconds": 1.0,
            "method": "m{number}", "calls": {calls}, "checkouts": 0}}"#
        )
    }

    struct TestTop {
        view: View,
        requested: Receiver<Request>,
        terminal: Terminal<TestBackend>,
    }

    impl TestTop {
        fn new(width: u16, height: u16, workers: &[String]) -> Self {
            let (requests, requested) = channel();
            let view = View::new(status(&workers.join(",")), requests);
            Self {
                view,
                requested,
                terminal: Terminal::new(TestBackend::new(width, height)).unwrap(),
            }
        }

        fn press(&mut self, code: KeyCode) -> KeyEffect {
            self.view.key(KeyEvent::new(code, KeyModifiers::NONE))
        }

        fn press_repeatedly(&mut self, times: usize, code: KeyCode) {
            for _ in 0..times {
                assert_eq!(self.press(code), KeyEffect::None);
            }
        }

        fn lines(&mut self) -> Vec<String> {
            self.terminal.draw(|frame| self.view.draw(frame)).unwrap();
            let buffer = self.terminal.backend().buffer();
            let width = usize::from(buffer.area.width);
            let cells: Vec<&str> = buffer.content.iter().map(|cell| cell.symbol()).collect();
            cells.chunks(width).map(|line| line.concat().trim_end().to_owned()).collect()
        }
    }

    fn many() -> Vec<String> {
        (1..=9).map(|number| worker(number, 1000 + number as u32, "idle", 10 - number)).collect()
    }

    #[test]
    fn a_small_screen_has_a_head_workers_and_a_foot() {
        // The longest process ids that Linux has.
        let workers = [worker(1, 4_194_303, "idle", 1), worker(2, 7, "busy", 2)];
        let mut top = TestTop::new(20, 5, &workers);
        assert_eq!(
            top.lines(),
            [
                "1/2 busy, 0 wait  0/",
                "worker pid     state",
                "1      4194303 idle",
                "2      7       busy",
                "? keys  q quit"
            ]
        );
        // Every column can be scrolled there.
        top.press(KeyCode::Right);
        top.press(KeyCode::Right);
        assert_eq!(top.lines()[1], "worker for  method");
        top.press_repeatedly(20, KeyCode::Right);
        assert_eq!(top.lines()[1], "worker client");
    }

    #[test]
    fn a_screen_of_any_size_is_drawn() {
        for (width, height) in [(1, 1), (2, 2), (3, 1), (1, 40), (500, 3), (20, 4)] {
            let mut top = TestTop::new(width, height, &many());
            top.lines();
            top.press(KeyCode::Char('?'));
            top.lines();
        }
    }

    #[test]
    fn the_table_scrolls_to_the_worker_that_is_chosen() {
        let mut top = TestTop::new(20, 5, &many());
        top.press_repeatedly(4, KeyCode::Down);
        assert_eq!(top.lines()[3], "5      1005 idle");
        top.press(KeyCode::End);
        assert_eq!(top.lines()[3], "9      1009 idle");
        top.press(KeyCode::Down);
        top.press(KeyCode::PageUp);
        assert_eq!(top.view.selected, Some(7));
        top.press(KeyCode::Home);
        assert_eq!(top.lines()[2], "1      1001 idle");
        // The worker stays selected in later lists until it has ended.
        top.press(KeyCode::Down);
        top.view.update(Ok(status(&many()[1..].join(","))));
        assert_eq!((top.view.selected, top.view.table.selected()), (Some(2), Some(0)));
        top.view.update(Ok(status(&many()[2..].join(","))));
        assert_eq!((top.view.selected, top.view.table.selected()), (Some(3), Some(0)));
        top.view.update(Ok(status("")));
        assert_eq!((top.view.selected, top.view.table.selected()), (None, None));
        top.lines();
    }

    #[test]
    fn workers_are_sorted_by_each_column_both_ways() {
        let mut top = TestTop::new(100, 20, &many());
        // Process id, state, time, method, progress.
        top.press_repeatedly(6, KeyCode::Char('s'));
        let screen = top.lines();
        assert!(screen[3].contains("calls▼"), "{screen:?}");
        assert!(screen[4].starts_with("1 ") && screen[12].starts_with("9 "), "{screen:?}");
        top.press(KeyCode::Char('r'));
        let screen = top.lines();
        assert!(screen[3].contains("calls▲"), "{screen:?}");
        assert!(screen[4].starts_with("9 ") && screen[12].starts_with("1 "), "{screen:?}");
        // The selection follows the worker, not the row.
        assert_eq!((top.view.selected, top.view.table.selected()), (Some(1), Some(8)));
        for column in 7..=COUNT {
            top.press(KeyCode::Char('s'));
            assert_eq!(top.view.order.column, column % COUNT);
        }
    }

    #[test]
    fn a_worker_is_killed_only_after_a_yes() {
        let mut process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let worker = worker(3, process.id(), "busy", 1);
        let mut top = TestTop::new(20, 5, std::slice::from_ref(&worker));
        for answer in [KeyCode::Char('n'), KeyCode::Esc, KeyCode::Enter, KeyCode::Char('k')] {
            top.press(KeyCode::Char('k'));
            assert_eq!(top.lines()[4], "kill 3? y/n");
            assert_eq!(top.press(answer), KeyEffect::None);
            assert_eq!(top.lines()[4], "worker 3 was not kil");
        }
        // The worker has ended in between, and another process may have its process id.
        top.press(KeyCode::Char('k'));
        top.view.update(Ok(status("")));
        top.press(KeyCode::Char('y'));
        assert_eq!(top.view.message, "worker 3 has ended already");
        assert!(process.try_wait().unwrap().is_none());

        top.view.update(Ok(status(&worker)));
        top.press(KeyCode::Char('k'));
        assert!(process.try_wait().unwrap().is_none());
        top.press(KeyCode::Char('y'));
        assert!(top.lines()[4].starts_with("worker 3 was killed"));
        let ended = std::os::unix::process::ExitStatusExt::signal(&process.wait().unwrap());
        assert_eq!(ended, Some(9));
        assert!(matches!(top.requested.try_iter().last(), Some(Request::Status)));
    }
}
