//! `taskfork top`: a live view of a server's workers, or of the nodes of a service. `events` has its inputs, `view` the screen of a server and the
//! effects of keys, `table` its columns, `fleet_view` the screen of a service.

mod cpu_usage;
mod events;
mod fleet_view;
mod table;
mod view;

use std::io::{self, IsTerminal, stdout};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::KeyEvent;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::{Frame, Terminal};
use signal_hook::consts::{SIGCONT, SIGTSTP};
use signal_hook::low_level::emulate_default_handler;

use self::events::TopEvent;
use self::fleet_view::FleetView;
use self::view::{KeyEffect, View};
use crate::error::CommandError;
use crate::fleet_status::Service;
use crate::status::{self, StatusAddress};
use crate::units::Time;
use crate::{fleet_status, output};

/// The server, and how often to read its status.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Keys: arrows, page keys, Home and End choose a worker and scroll; s sorts by the \
                        next column, r reverses; k kills a worker after a question, d dismisses it; ? lists \
                        all keys; q ends. For a service, arrows choose a node, w shows its workers, q ends, and the \
                        other keys do nothing."
)]
pub(crate) struct Options {
    #[command(flatten)]
    server: StatusAddress,
    /// How often to read the status
    #[arg(long, value_name = "TIME", default_value = "1s")]
    interval: Time,
    /// Read the status once and print it
    #[arg(long)]
    pub(crate) once: bool,
    /// Print JSON, one line for each status
    #[arg(long, requires = "once")]
    json: bool,
}

/// The shortest interval, to limit the load on the server.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// What is shown, and what events do to it.
trait Shown {
    fn draw(&mut self, frame: &mut Frame<'_>);

    fn key(&mut self, key: KeyEvent) -> KeyEffect;

    /// Takes what a server or a node has answered.
    fn handle_answer(&mut self, event: TopEvent);
}

pub(crate) fn run(options: Options) -> Result<(), CommandError> {
    if options.server.address.is_nats() {
        return run_fleet(options);
    }
    let status = options.server.read()?;
    if options.once {
        return output::line(&match options.json {
            true => status::json(&status)?,
            false => status::headline(&status),
        });
    }
    check_terminal()?;
    let interval = options.interval.0.max(MIN_INTERVAL);
    show(|sender| {
        let requests = events::ask_server(sender, options.server.socket()?, interval)?;
        Ok(View::new(status, requests))
    })
}

/// Watches the nodes of a service at NATS.
fn run_fleet(options: Options) -> Result<(), CommandError> {
    let StatusAddress { address, nats } = &options.server;
    if options.once {
        return fleet_status::print(address, nats, false, options.json);
    }
    check_terminal()?;
    let service = Service::connect(address, nats)?;
    let interval = options.interval.0.max(MIN_INTERVAL);
    show(|sender| {
        let name = service.name().to_owned();
        let requests = events::ask_nodes(sender, service, interval)?;
        Ok(FleetView::new(name, requests))
    })
}

fn check_terminal() -> Result<(), CommandError> {
    if stdout().is_terminal() {
        return Ok(());
    }
    Err(CommandError::usage("standard output is no terminal")
        .hint("--once prints what the server says now, --once --json for programs"))
}

/// Shows a view, which `start` makes, until the user quits or a signal ends it.
fn show<V: Shown>(
    start: impl FnOnce(&Sender<TopEvent>) -> Result<V, CommandError>,
) -> Result<(), CommandError> {
    let (sender, events_received) = channel();
    // Handlers come before the change of the terminal. A signal in between would leave the terminal changed.
    events::catch_signals(&sender)?;
    let mut terminal = ratatui::try_init().map_err(|error| {
        ratatui::restore();
        CommandError::usage(format!("this is no terminal: {error}"))
            .hint("--once --json prints instead")
    })?;
    let started = start(&sender).and_then(|view| {
        events::read_keys(&sender)?;
        Ok(view)
    });
    drop(sender);
    let done = started.and_then(|mut view| event_loop(&mut view, &mut terminal, &events_received));
    restore_terminal(&mut terminal);
    if let Some(signal) = done? {
        // The exit status must name this signal for the process that waits.
        emulate_default_handler(signal)?;
    }
    Ok(())
}

type Screen = Terminal<CrosstermBackend<io::Stdout>>;

/// Shows the view until the user quits or a signal ends it. Returns that signal.
fn event_loop(
    view: &mut impl Shown,
    terminal: &mut Screen,
    events_received: &Receiver<TopEvent>,
) -> Result<Option<i32>, CommandError> {
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        let effect = match events_received.recv() {
            Ok(TopEvent::Key(key)) => view.key(key),
            Ok(TopEvent::Resized) => KeyEffect::None,
            Ok(TopEvent::Signal(SIGTSTP)) => KeyEffect::Suspend,
            Ok(TopEvent::Signal(SIGCONT)) => {
                *terminal = set_up_terminal()?;
                KeyEffect::None
            }
            Ok(TopEvent::Signal(signal)) => return Ok(Some(signal)),
            Ok(TopEvent::Unreadable(error)) => {
                return Err(CommandError::fatal(format!("the terminal cannot be read: {error}")));
            }
            Ok(answer) => {
                view.handle_answer(answer);
                KeyEffect::None
            }
            // All threads have ended.
            Err(_) => KeyEffect::Quit,
        };
        match effect {
            KeyEffect::None => {}
            KeyEffect::Quit => return Ok(None),
            KeyEffect::Suspend => {
                restore_terminal(terminal);
                emulate_default_handler(SIGTSTP)?;
                *terminal = set_up_terminal()?;
            }
        }
    }
}

/// Restores the terminal.
fn restore_terminal(terminal: &mut Screen) {
    // The terminal may have been closed.
    let _ = terminal.show_cursor();
    ratatui::restore();
}

/// Sets the terminal up again after this process was stopped, since the shell may have changed its modes.
fn set_up_terminal() -> io::Result<Screen> {
    disable_raw_mode()?;
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen)?;
    Terminal::new(CrosstermBackend::new(stdout()))
}
