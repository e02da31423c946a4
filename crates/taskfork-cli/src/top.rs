//! `taskfork top`: a server's workers, live, in the whole terminal.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use log_defer::printable;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table, TableState, Wrap};
use ratatui::{DefaultTerminal, Frame};
use rustix::process::{Pid, Signal, kill_process};
use taskfork::{ServerStatus, WorkerStatus};

use crate::failure::Failure;
use crate::output;
use crate::status::{self, COLUMNS, Watched};
use crate::units::Time;

/// Which server, and how often to look.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    server: Watched,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "1s")]
    interval: Time,
    /// Look once and print it
    #[arg(long)]
    once: bool,
    /// Print JSON, a line a look
    #[arg(long, requires = "once")]
    json: bool,
}

pub(crate) fn run(options: Options) -> Result<(), Failure> {
    let status = options.server.read()?;
    if options.once {
        if options.json {
            output::print(&format!("{}\n", status::json(&status)?))?;
        } else {
            output::print(&format!("{}\n", status::headline(&status)))?;
        }
        return Ok(());
    }
    let socket = options.server.socket()?;
    let mut view = View::new(socket, status);
    let mut terminal = ratatui::try_init().map_err(|error| {
        Failure::usage(format!("this is no terminal: {error}")).hint("--once --json prints instead")
    })?;
    let done = view.live(&mut terminal, options.interval.0.max(Duration::from_millis(50)));
    ratatui::restore();
    done
}

struct View {
    socket: PathBuf,
    status: ServerStatus,
    looked: Instant,
    /// Calls and processor time of all workers at the look before, and when that was.
    before: Option<(u64, Instant)>,
    rate: f64,
    cpu: Processors,
    table: TableState,
    /// What has just been done, or went wrong.
    said: String,
}

impl View {
    fn new(socket: PathBuf, status: ServerStatus) -> Self {
        let mut cpu = Processors::default();
        cpu.look(&status);
        Self {
            socket,
            status,
            looked: Instant::now(),
            before: None,
            rate: 0.0,
            cpu,
            table: TableState::default().with_selected(0),
            said: String::new(),
        }
    }

    fn live(&mut self, terminal: &mut DefaultTerminal, interval: Duration) -> Result<(), Failure> {
        loop {
            terminal.draw(|frame| self.draw(frame))?;
            let left = interval.saturating_sub(self.looked.elapsed());
            if !event::poll(left)? {
                self.look();
                continue;
            }
            let Event::Key(key) = event::read()? else { continue };
            if key.kind != KeyEventKind::Press {
                continue;
            }
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(());
                }
                KeyCode::Down | KeyCode::Char('j') => self.table.select_next(),
                KeyCode::Up => self.table.select_previous(),
                KeyCode::Char('k') => self.kill(),
                KeyCode::Char('d') => self.dismiss(),
                _ => {}
            }
        }
    }

    fn look(&mut self) {
        match ServerStatus::read(&self.socket) {
            Ok(status) => self.take(status),
            Err(error) => {
                self.said = printable(&format!("the server does not answer: {error}")).into_owned()
            }
        }
        self.looked = Instant::now();
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
    }

    fn selected(&self) -> Option<&WorkerStatus> {
        self.status.workers.get(self.table.selected()?)
    }

    fn kill(&mut self) {
        let Some(worker) = self.selected() else { return };
        let (number, pid) = (worker.number, worker.pid);
        let killed = Pid::from_raw(pid.cast_signed()).map(|pid| kill_process(pid, Signal::KILL));
        self.said = match killed {
            Some(Ok(())) => format!("worker {number} (process {pid}) was killed"),
            Some(Err(error)) => format!("worker {number} cannot be killed: {error}"),
            None => return,
        };
        self.look();
    }

    fn dismiss(&mut self) {
        let Some(number) = self.selected().map(|worker| worker.number) else { return };
        match ServerStatus::dismiss(&self.socket, number) {
            Ok(status) => {
                self.said = format!("worker {number} leaves when its checkout is done");
                self.take(status);
            }
            Err(error) => self.said = format!("worker {number} cannot be dismissed: {error}"),
        }
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(3), Constraint::Fill(1), Constraint::Length(2)])
                .areas(frame.area());
        let headline = format!("{}\n{:.0} calls/s", status::headline(&self.status), self.rate);
        frame.render_widget(Paragraph::new(headline).wrap(Wrap { trim: true }), head);
        let heads = COLUMNS.into_iter().chain(["cpu"]);
        let rows = self.status.workers.iter().map(|worker| {
            let cpu = self.cpu.share(worker.pid).map(|share| format!("{share:.0}%"));
            let row = Row::new(status::row(worker).into_iter().chain([cpu.unwrap_or_default()]));
            match worker.state.as_str() {
                "busy" | "setup" => row.style(Style::new().bold()),
                "idle" | "spare" => row.style(Style::new().dim()),
                _ => row,
            }
        });
        let widths = [7, 8, 13, 8, 24, 9, 9, 9, 6].map(Constraint::Length);
        let table = Table::new(rows, widths)
            .header(Row::new(heads).style(Style::new().add_modifier(Modifier::UNDERLINED)))
            .row_highlight_style(Style::new().reversed());
        frame.render_stateful_widget(table, body, &mut self.table);
        let keys = "↑↓ choose a worker   k kill it   d dismiss it   q quit";
        let foot_lines = vec![Line::from(self.said.as_str()), Line::from(keys).dim()];
        frame.render_widget(Paragraph::new(foot_lines), foot);
    }
}

/// How much of a core each worker takes.
#[derive(Debug, Default)]
struct Processors {
    /// Ticks by process, now and before, and when that was.
    now: Vec<(u32, u64)>,
    before: Vec<(u32, u64)>,
    at: Option<Instant>,
    between: Duration,
}

impl Processors {
    fn look(&mut self, status: &ServerStatus) {
        let pids = status.workers.iter().map(|worker| worker.pid);
        self.before = std::mem::replace(&mut self.now, pids.map(|pid| (pid, ticks(pid))).collect());
        let at = Instant::now();
        self.between = self.at.replace(at).map_or(Duration::ZERO, |before| at - before);
    }

    /// In percent of a core, since the look before.
    fn share(&self, pid: u32) -> Option<f64> {
        let of = |list: &[(u32, u64)]| list.iter().find(|(known, _)| *known == pid).map(|it| it.1);
        let spent = of(&self.now)?.saturating_sub(of(&self.before)?);
        let seconds = self.between.as_secs_f64();
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        (seconds > 0.0).then(|| spent as f64 / per_second / seconds * 100.0)
    }
}

/// The processor time that a process and those that it has started have taken.
fn ticks(pid: u32) -> u64 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    children.chain([pid]).filter_map(own_ticks).sum()
}

fn own_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program may hold anything, but not what stands behind its bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(field(11)? + field(12)?)
}
