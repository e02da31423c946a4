//! What `top` shows, and what its keys do.

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

use super::events::Wish;
use super::processors::Processors;
use super::table::{self, COUNT, Order};
use crate::status;

/// What comes after a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    Leave,
    /// Stop this process, as Ctrl-Z does elsewhere.
    Stop,
}

/// A worker that is killed if the answer is yes. The descriptor stays the worker's where its process id is used
/// again.
#[derive(Debug)]
struct Victim {
    number: u64,
    pid: u32,
    process: OwnedFd,
}

pub(super) struct View {
    status: ServerStatus,
    wishes: Sender<Wish>,
    /// Calls of all workers at the look before, and when that was.
    before: Option<(u64, Instant)>,
    rate: f64,
    cpu: Processors,
    order: Order,
    /// The first column that is shown beside the worker's number.
    first: usize,
    /// The number of the worker that is chosen.
    chosen: Option<u64>,
    table: TableState,
    /// How many workers fit the screen.
    page: usize,
    /// Who is to be killed.
    victim: Option<Victim>,
    /// The first line of the list of keys, if it is shown.
    help: Option<u16>,
    /// What has just been done, or went wrong.
    said: String,
}

/// What the keys do, for the list of them.
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

/// Below this height the head and the foot have one line each.
const LOW: u16 = 10;

impl View {
    pub(super) fn new(status: ServerStatus, wishes: Sender<Wish>) -> Self {
        let mut view = Self {
            status: status.clone(),
            wishes,
            before: None,
            rate: 0.0,
            cpu: Processors::default(),
            order: Order::default(),
            first: 1,
            chosen: None,
            table: TableState::default(),
            page: 1,
            victim: None,
            help: None,
            said: String::new(),
        };
        view.take(status);
        view
    }

    pub(super) fn looked(&mut self, looked: io::Result<ServerStatus>) {
        match looked {
            Ok(status) => self.take(status),
            Err(error) => {
                self.said = printable(&format!("the server does not answer: {error}")).into_owned();
            }
        }
    }

    pub(super) fn dismissed(&mut self, number: u64, answer: io::Result<ServerStatus>) {
        match answer {
            Ok(status) => {
                self.said = format!("worker {number} leaves when its checkout is done");
                self.take(status);
            }
            Err(error) => self.said = format!("worker {number} cannot be dismissed: {error}"),
        }
    }

    fn take(&mut self, status: ServerStatus) {
        let calls = status.workers.iter().map(|worker| worker.calls).sum();
        if let Some((before, since)) = self.before {
            let time = since.elapsed().as_secs_f64().max(0.001);
            // A worker that has ended takes its calls with it.
            self.rate = u64::saturating_sub(calls, before) as f64 / time;
        }
        self.before = Some((calls, Instant::now()));
        self.cpu.look(&status);
        self.status = status;
        self.sort();
    }

    fn sort(&mut self) {
        let (order, cpu) = (self.order, &self.cpu);
        self.status.workers.sort_by(|a, b| order.compare(cpu, a, b));
        let at = self.place();
        self.choose(at);
    }

    /// The row of the worker that is chosen; where that has ended, the row that it had.
    fn place(&self) -> usize {
        let number = |worker: &WorkerStatus| Some(worker.number) == self.chosen;
        let place = self.status.workers.iter().position(number);
        place.or(self.table.selected()).unwrap_or(0)
    }

    /// Chooses the worker of this row, or of the last.
    fn choose(&mut self, row: usize) {
        let row = row.min(self.status.workers.len().saturating_sub(1));
        self.chosen = self.status.workers.get(row).map(|worker| worker.number);
        self.table.select(self.chosen.map(|_| row));
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Next {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Next::Leave,
            KeyCode::Char('z') if control => return Next::Stop,
            _ if control => return Next::Stay,
            _ => {}
        }
        if let Some(victim) = self.victim.take() {
            match key.code {
                KeyCode::Char('y' | 'Y') => self.kill(&victim),
                _ => self.said = format!("worker {} was not killed", victim.number),
            }
            return Next::Stay;
        }
        if let Some(line) = self.help {
            let last = KEYS.len() as u16 - 1;
            self.help = match key.code {
                KeyCode::Down | KeyCode::PageDown => Some((line + 1).min(last)),
                KeyCode::Up | KeyCode::PageUp => Some(line.saturating_sub(1)),
                KeyCode::Char('q') => return Next::Leave,
                _ => None,
            };
            return Next::Stay;
        }
        let row = self.place();
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::Leave,
            KeyCode::Down | KeyCode::Char('j') => self.choose(row + 1),
            KeyCode::Up => self.choose(row.saturating_sub(1)),
            KeyCode::PageDown => self.choose(row + self.page),
            KeyCode::PageUp => self.choose(row.saturating_sub(self.page)),
            KeyCode::Home | KeyCode::Char('g') => self.choose(0),
            KeyCode::End | KeyCode::Char('G') => self.choose(usize::MAX),
            KeyCode::Right => self.first = (self.first + 1).min(COUNT - 1),
            KeyCode::Left => self.first = (self.first - 1).max(1),
            KeyCode::Char('s') => self.order_by(self.order.next()),
            KeyCode::Char('r') => self.order_by(self.order.reversed()),
            KeyCode::Char('k') => self.ask(),
            KeyCode::Char('d') => self.dismiss(),
            KeyCode::Char('?' | 'h') => self.help = Some(0),
            _ => {}
        }
        Next::Stay
    }

    fn order_by(&mut self, order: Order) {
        self.order = order;
        let direction = if order.descending { "largest first" } else { "smallest first" };
        self.said = format!("by {}, {direction}", table::name(order.column));
        self.sort();
    }

    fn selected(&self) -> Option<&WorkerStatus> {
        self.status.workers.iter().find(|worker| Some(worker.number) == self.chosen)
    }

    /// Asks whether to kill the worker that is chosen.
    fn ask(&mut self) {
        let Some((number, pid)) = self.selected().map(|worker| (worker.number, worker.pid)) else {
            return;
        };
        let Some(process) = Pid::from_raw(pid.cast_signed()) else { return };
        match pidfd_open(process, PidfdFlags::empty()) {
            Ok(process) => self.victim = Some(Victim { number, pid, process }),
            Err(error) => self.said = format!("worker {number} cannot be killed: {error}"),
        }
        // If the worker had ended and its process id had been used again before the descriptor was opened,
        // the answer to this shows that it is gone.
        self.wish(Wish::Look);
    }

    fn kill(&mut self, Victim { number, pid, process }: &Victim) {
        let is_there = |worker: &WorkerStatus| (worker.number, worker.pid) == (*number, *pid);
        if !self.status.workers.iter().any(is_there) {
            self.said = format!("worker {number} has ended already");
            return;
        }
        self.said = match pidfd_send_signal(process, Signal::KILL) {
            Ok(()) => format!("worker {number} was killed (process {pid})"),
            Err(error) => format!("worker {number} cannot be killed: {error}"),
        };
        self.wish(Wish::Look);
    }

    fn dismiss(&mut self) {
        let Some(number) = self.chosen else { return };
        self.said = format!("worker {number} is told to leave");
        self.wish(Wish::Dismiss(number));
    }

    fn wish(&mut self, wish: Wish) {
        if self.wishes.send(wish).is_err() {
            self.said = "the server is asked no more".to_owned();
        }
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let (head, foot) = if area.height < LOW { (1, 1) } else { (3, 2) };
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

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let text = if area.height > 1 {
            format!("{}\n{:.0} calls/s", status::headline(&self.status), self.rate)
        } else {
            let busy = self.status.workers.iter().filter(|worker| worker.state == "busy").count();
            let workers = self.status.workers.len();
            let (queued, name) = (self.status.queued, printable(&self.status.name));
            // What matters most first: the end may be cut.
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
        let cells: Vec<_> = [table::heads(self.order)].into_iter().chain(cells).collect();
        let columns = table::fitting(&cells, self.first, area.width);
        let shown = |cells: &[String; COUNT]| {
            Row::new(columns.iter().map(|(column, _)| cells[*column].clone()).collect::<Vec<_>>())
        };
        let rows =
            workers.iter().zip(&cells[1..]).map(|(worker, cells)| match worker.state.as_str() {
                "busy" | "setup" => shown(cells).style(Style::new().bold()),
                "idle" | "spare" => shown(cells).style(Style::new().dim()),
                _ => shown(cells),
            });
        let heads = shown(&cells[0]);
        let widths = columns.iter().map(|(_, width)| Constraint::Length(*width));
        let table = Table::new(rows, widths)
            .header(heads.style(Style::new().add_modifier(Modifier::UNDERLINED)))
            .row_highlight_style(Style::new().reversed());
        frame.render_stateful_widget(table, area, &mut self.table);
    }

    fn draw_foot(&self, frame: &mut Frame<'_>, area: Rect) {
        let fits = |text: &String| text.chars().count() <= usize::from(area.width);
        let said = match &self.victim {
            Some(Victim { number, pid, .. }) => {
                let long = format!(
                    "kill worker {number} (process {pid})? y kills it, any other key does not"
                );
                let short = format!("kill {number}? y/n");
                Some(long).filter(fits).unwrap_or(short)
            }
            None => self.said.clone(),
        };
        let keys =
            "↑↓ choose a worker   k kill it   d dismiss it   s sort   ? keys   q quit".to_owned();
        let keys = Some(keys).filter(fits).unwrap_or_else(|| "? keys  q quit".to_owned());
        let lines = match (area.height > 1, said.is_empty()) {
            (true, _) => vec![Line::from(said), Line::from(keys).dim()],
            (false, false) => vec![Line::from(said)],
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

    struct Tried {
        view: View,
        wished: Receiver<Wish>,
        terminal: Terminal<TestBackend>,
    }

    impl Tried {
        fn new(width: u16, height: u16, workers: &[String]) -> Self {
            let (wishes, wished) = channel();
            let view = View::new(status(&workers.join(",")), wishes);
            Self { view, wished, terminal: Terminal::new(TestBackend::new(width, height)).unwrap() }
        }

        fn press(&mut self, code: KeyCode) -> Next {
            self.view.key(KeyEvent::new(code, KeyModifiers::NONE))
        }

        fn press_often(&mut self, times: usize, code: KeyCode) {
            for _ in 0..times {
                assert_eq!(self.press(code), Next::Stay);
            }
        }

        fn screen(&mut self) -> Vec<String> {
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
        let mut tried = Tried::new(20, 5, &workers);
        assert_eq!(
            tried.screen(),
            [
                "1/2 busy, 0 wait  0/",
                "worker pid     state",
                "1      4194303 idle",
                "2      7       busy",
                "? keys  q quit"
            ]
        );
        // All columns can be brought there.
        tried.press(KeyCode::Right);
        tried.press(KeyCode::Right);
        assert_eq!(tried.screen()[1], "worker for  method");
        tried.press_often(20, KeyCode::Right);
        assert_eq!(tried.screen()[1], "worker cpu");
    }

    #[test]
    fn a_screen_of_any_size_is_drawn() {
        for (width, height) in [(1, 1), (2, 2), (3, 1), (1, 40), (500, 3), (20, 4)] {
            let mut tried = Tried::new(width, height, &many());
            tried.screen();
            tried.press(KeyCode::Char('?'));
            tried.screen();
        }
    }

    #[test]
    fn the_table_scrolls_to_the_worker_that_is_chosen() {
        let mut tried = Tried::new(20, 5, &many());
        tried.press_often(4, KeyCode::Down);
        assert_eq!(tried.screen()[3], "5      1005 idle");
        tried.press(KeyCode::End);
        assert_eq!(tried.screen()[3], "9      1009 idle");
        tried.press(KeyCode::Down);
        tried.press(KeyCode::PageUp);
        assert_eq!(tried.view.chosen, Some(7));
        tried.press(KeyCode::Home);
        assert_eq!(tried.screen()[2], "1      1001 idle");
        // The worker stays chosen, wherever it is in a later list, until it has ended.
        tried.press(KeyCode::Down);
        tried.view.looked(Ok(status(&many()[1..].join(","))));
        assert_eq!((tried.view.chosen, tried.view.table.selected()), (Some(2), Some(0)));
        tried.view.looked(Ok(status(&many()[2..].join(","))));
        assert_eq!((tried.view.chosen, tried.view.table.selected()), (Some(3), Some(0)));
        tried.view.looked(Ok(status("")));
        assert_eq!((tried.view.chosen, tried.view.table.selected()), (None, None));
        tried.screen();
    }

    #[test]
    fn workers_are_sorted_by_each_column_both_ways() {
        let mut tried = Tried::new(100, 20, &many());
        // Process id, state, time, method.
        tried.press_often(5, KeyCode::Char('s'));
        let screen = tried.screen();
        assert!(screen[3].contains("calls▼"), "{screen:?}");
        assert!(screen[4].starts_with("1 ") && screen[12].starts_with("9 "), "{screen:?}");
        tried.press(KeyCode::Char('r'));
        let screen = tried.screen();
        assert!(screen[3].contains("calls▲"), "{screen:?}");
        assert!(screen[4].starts_with("9 ") && screen[12].starts_with("1 "), "{screen:?}");
        // The worker that was chosen is still that, not its row.
        assert_eq!((tried.view.chosen, tried.view.table.selected()), (Some(1), Some(8)));
        for column in 6..=COUNT {
            tried.press(KeyCode::Char('s'));
            assert_eq!(tried.view.order.column, column % COUNT);
        }
    }

    #[test]
    fn a_worker_is_killed_only_after_a_yes() {
        let mut process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let worker = worker(3, process.id(), "busy", 1);
        let mut tried = Tried::new(20, 5, std::slice::from_ref(&worker));
        for answer in [KeyCode::Char('n'), KeyCode::Esc, KeyCode::Enter, KeyCode::Char('k')] {
            tried.press(KeyCode::Char('k'));
            assert_eq!(tried.screen()[4], "kill 3? y/n");
            assert_eq!(tried.press(answer), Next::Stay);
            assert_eq!(tried.screen()[4], "worker 3 was not kil");
        }
        // It ended in between: its process id may be somebody else's.
        tried.press(KeyCode::Char('k'));
        tried.view.looked(Ok(status("")));
        tried.press(KeyCode::Char('y'));
        assert_eq!(tried.view.said, "worker 3 has ended already");
        assert!(process.try_wait().unwrap().is_none());

        tried.view.looked(Ok(status(&worker)));
        tried.press(KeyCode::Char('k'));
        assert!(process.try_wait().unwrap().is_none());
        tried.press(KeyCode::Char('y'));
        assert!(tried.screen()[4].starts_with("worker 3 was killed"));
        let ended = std::os::unix::process::ExitStatusExt::signal(&process.wait().unwrap());
        assert_eq!(ended, Some(9));
        assert!(matches!(tried.wished.try_iter().last(), Some(Wish::Look)));
    }
}
