//! `taskfork top`: a server's workers, live, in the whole terminal. `events` is what it waits for, `view` what
//! it shows and what keys do, `table` the columns.

mod events;
mod processors;
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

use self::events::Happened;
use self::view::{Next, View};
use crate::failure::Failure;
use crate::output;
use crate::status::{self, Watched};
use crate::units::Time;

/// Which server, and how often to look.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Keys: arrows, page keys, Home and End choose a worker and scroll; s sorts by the \
                        next column, r reverses; k kills a worker after a question, d dismisses it; ? lists \
                        all keys; q ends."
)]
pub(crate) struct Options {
    #[command(flatten)]
    server: Watched,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "1s")]
    interval: Time,
    /// Look once and print it
    #[arg(long)]
    pub(crate) once: bool,
    /// Print JSON, a line a look
    #[arg(long, requires = "once")]
    json: bool,
}

/// The server is not asked more often.
const SHORTEST: Duration = Duration::from_millis(50);

pub(crate) fn run(options: Options) -> Result<(), Failure> {
    let status = options.server.read()?;
    if options.once {
        return output::line(&match options.json {
            true => status::json(&status)?,
            false => status::headline(&status),
        });
    }
    if !stdout().is_terminal() {
        return Err(Failure::usage("standard output is no terminal")
            .hint("--once prints what the server says now, --once --json for programs"));
    }
    let (sender, happened) = channel();
    // Before the terminal is changed: a signal between the two would leave it changed.
    events::catch_signals(&sender)?;
    let mut terminal = ratatui::try_init().map_err(|error| {
        ratatui::restore();
        Failure::usage(format!("this is no terminal: {error}")).hint("--once --json prints instead")
    })?;
    let interval = options.interval.0.max(SHORTEST);
    let started = options.server.socket().and_then(|socket| {
        events::read_keys(&sender)?;
        Ok(events::ask_server(&sender, socket, interval)?)
    });
    drop(sender);
    let done = started.and_then(|wishes| {
        let mut view = View::new(status, wishes);
        live(&mut view, &mut terminal, &happened)
    });
    give_back(&mut terminal);
    if let Some(signal) = done? {
        // Whoever waits for this process learns which signal has ended it.
        emulate_default_handler(signal)?;
    }
    Ok(())
}

type Screen = Terminal<CrosstermBackend<io::Stdout>>;

/// Shows the view until it is left; gives the signal that ends this process, if one does.
fn live(
    view: &mut View,
    terminal: &mut Screen,
    happened: &Receiver<Happened>,
) -> Result<Option<i32>, Failure> {
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        let next = match happened.recv() {
            Ok(Happened::Key(key)) => view.key(key),
            Ok(Happened::Looked(looked)) => {
                view.looked(looked);
                Next::Stay
            }
            Ok(Happened::Dismissed(worker, answer)) => {
                view.dismissed(worker, answer);
                Next::Stay
            }
            Ok(Happened::Resized) => Next::Stay,
            Ok(Happened::Signal(SIGTSTP)) => Next::Stop,
            Ok(Happened::Signal(SIGCONT)) => {
                *terminal = take_terminal()?;
                Next::Stay
            }
            Ok(Happened::Signal(signal)) => return Ok(Some(signal)),
            Ok(Happened::Unreadable(error)) => {
                return Err(Failure::fatal(format!("the terminal cannot be read: {error}")));
            }
            // No thread is left that could say anything.
            Err(_) => Next::Leave,
        };
        match next {
            Next::Stay => {}
            Next::Leave => return Ok(None),
            Next::Stop => {
                give_back(terminal);
                emulate_default_handler(SIGTSTP)?;
                *terminal = take_terminal()?;
            }
        }
    }
}

/// Leaves the terminal as it was.
fn give_back(terminal: &mut Screen) {
    // If it is gone, there is nothing to be left in order.
    let _ = terminal.show_cursor();
    ratatui::restore();
}

/// Takes the terminal again after this process was stopped, whatever the shell has done with it meanwhile.
fn take_terminal() -> io::Result<Screen> {
    disable_raw_mode()?;
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen)?;
    Terminal::new(CrosstermBackend::new(stdout()))
}
