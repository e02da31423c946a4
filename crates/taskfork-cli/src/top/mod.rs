//! `taskfork top`: a live view of a server's workers. `events` has its inputs, `view` the screen and the effects
//! of keys, `table` the columns.

mod cpu_usage;
mod events;
mod table;
mod view;

use std::io::{self, IsTerminal, stdout};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, disable_raw_mode, enable_raw_mode};
use signal_hook::consts::{SIGCONT, SIGTSTP};
use signal_hook::low_level::emulate_default_handler;

use self::events::TopEvent;
use self::view::{KeyEffect, View};
use crate::error::CommandError;
use crate::output;
use crate::status::{self, StatusAddress};
use crate::units::Time;

/// The server, and how often to read its status.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Keys: arrows, page keys, Home and End choose a worker and scroll; s sorts by the \
                        next column, r reverses; k kills a worker after a question, d dismisses it; ? lists \
                        all keys; q ends."
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

pub(crate) fn run(options: Options) -> Result<(), CommandError> {
    let status = options.server.read()?;
    if options.once {
        return output::line(&match options.json {
            true => status::json(&status)?,
            false => status::headline(&status),
        });
    }
    if !stdout().is_terminal() {
        return Err(CommandError::usage("standard output is no terminal")
            .hint("--once prints what the server says now, --once --json for programs"));
    }
    let (sender, events_received) = channel();
    // Handlers come before the change of the terminal. A signal in between would leave the terminal changed.
    events::catch_signals(&sender)?;
    let mut terminal = ratatui::try_init().map_err(|error| {
        ratatui::restore();
        CommandError::usage(format!("this is no terminal: {error}"))
            .hint("--once --json prints instead")
    })?;
    let interval = options.interval.0.max(MIN_INTERVAL);
    let started = options.server.socket().and_then(|socket| {
        events::read_keys(&sender)?;
        Ok(events::ask_server(&sender, socket, interval)?)
    });
    drop(sender);
    let done = started.and_then(|requests| {
        let mut view = View::new(status, requests);
        event_loop(&mut view, &mut terminal, &events_received)
    });
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
    view: &mut View,
    terminal: &mut Screen,
    events_received: &Receiver<TopEvent>,
) -> Result<Option<i32>, CommandError> {
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        let effect = match events_received.recv() {
            Ok(TopEvent::Key(key)) => view.key(key),
            Ok(TopEvent::StatusRead(status)) => {
                view.update(status);
                KeyEffect::None
            }
            Ok(TopEvent::Dismissed(worker, answer)) => {
                view.dismissed(worker, answer);
                KeyEffect::None
            }
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
