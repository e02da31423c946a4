//! Drawing messages in a terminal.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{Duration, UNIX_EPOCH};

use anstyle::{AnsiColor, Style as Ansi};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::items::line_of;
use crate::level::Level;
use crate::message::Message;
use crate::printable::printable;

/// How a [`timeline`] is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// The width of lines, in columns. Values below 40 are treated as 40.
    pub width: usize,
    /// Whether to use colours.
    pub color: bool,
}

impl Style {
    /// The style for standard output. The width is that of the terminal, or 100 columns without one. Colours are used in
    /// a terminal, unless the environment variable `NO_COLOR` is set.
    ///
    /// ```
    /// use log_defer::{Log, Style, timeline};
    /// let log = Log::new(|message| print!("{}", timeline(&message, Style::for_stdout())));
    /// log.info("begun");
    /// ```
    pub fn for_stdout() -> Self {
        let width = terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0));
        let color = std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { width, color }
    }
}

/// The smallest width.
const MIN_WIDTH: usize = 40;

/// Draws a message: its start and duration, a bar for each timer, its lines, and its data.
///
/// Longer lines are cut, and end with `…`. Control characters are escaped as by [`printable`](crate::printable).
///
/// ```
/// use log_defer::{Message, Style, timeline};
///
/// let message: Message = serde_json::from_str(
///     r#"{"start": 1700000000, "end": 0.1, "timers": [["query", 0.05, 0.1]], "logs": [[0.01, 30, "go"]]}"#,
/// )?;
/// let drawn = timeline(&message, Style { width: 60, color: false });
/// assert!(drawn.starts_with("2023-11-14T22:13:20.000000Z  100.0 ms"));
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn timeline(message: &Message, style: Style) -> String {
    let width = style.width.max(MIN_WIDTH);
    let end = message.last_time();
    let mut out = String::new();
    let head = format!("{}  {}", instant(message.start), duration(end));
    add_line(&mut out, &[(Ansi::new().bold(), &head)], width, style.color);

    let names = message.timers.iter().map(|timer| one_line(&timer.name)).collect::<Vec<_>>();
    let name_width = names.iter().map(|name| name.width()).max().unwrap_or(0).min(width / 3);
    // The rest of the line has blanks, the name and the duration.
    let bar_width = width.saturating_sub(name_width + 16);
    for (timer, name) in message.timers.iter().zip(&names) {
        let to = timer.to.unwrap_or(end);
        let name = padded(name, name_width);
        let bar = bar(timer.from, to, end, bar_width);
        let open = if timer.to.is_none() { "…" } else { "" };
        let took = format!("{:>10}{open}", duration((to - timer.from).max(0.0)));
        let plain = Ansi::new();
        let parts =
            [(plain, "  "), (plain, &name), (plain, " "), (bar_style(), &bar), (plain, &took)];
        add_line(&mut out, &parts, width, style.color);
    }
    for entry in &message.logs {
        let time = format!("  {:>10}  ", duration(entry.time));
        let level = format!("{:<6}", entry.level);
        let text = one_line(&line_of(&entry.items));
        let parts = [
            (Ansi::new().dimmed(), &*time),
            (level_style(entry.level), &level),
            (Ansi::new(), &text),
        ];
        add_line(&mut out, &parts, width, style.color);
    }
    for (name, value) in &message.data {
        let name = one_line(name);
        let value = one_line(&format!(" = {value}"));
        let parts = [(Ansi::new(), "  "), (Ansi::new().bold(), &*name), (Ansi::new(), &value)];
        add_line(&mut out, &parts, width, style.color);
    }
    if message.left_out > 0 {
        let note = format!("  {} lines, timers or values cannot be read", message.left_out);
        add_line(&mut out, &[(level_style(Level::WARN), &note)], width, style.color);
    }
    out
}

/// The text without characters of unknown width.
fn one_line(text: &str) -> String {
    printable(text).replace('\t', " ")
}

fn add_line(out: &mut String, parts: &[(Ansi, &str)], width: usize, color: bool) {
    let whole: usize = parts.iter().map(|(_, text)| text.width()).sum();
    let mut left = if whole > width { width - 1 } else { width };
    let mut line = String::new();
    for (ansi, text) in parts {
        let fitting = fitting(text, left);
        left -= fitting.width();
        if color && !fitting.is_empty() {
            let _ = write!(line, "{ansi}{fitting}{ansi:#}");
        } else {
            line.push_str(fitting);
        }
        if fitting.len() < text.len() {
            line.push('…');
            break;
        }
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// The longest beginning of a text that fits the width.
fn fitting(text: &str, width: usize) -> &str {
    let mut taken = 0;
    for (place, letter) in text.char_indices() {
        taken += letter.width().unwrap_or(0);
        if taken > width {
            return &text[..place];
        }
    }
    text
}

/// The text padded with blanks, or cut and marked with `…`.
fn padded(text: &str, width: usize) -> String {
    let long = text.width() > width;
    let mut out = fitting(text, width - usize::from(long && width > 0)).to_owned();
    if long && width > 0 {
        out.push('…');
    }
    let blanks = width.saturating_sub(out.width());
    out.extend(std::iter::repeat_n(' ', blanks));
    out
}

/// A bar between two times, at least one column long.
fn bar(from: f64, to: f64, end: f64, width: usize) -> String {
    if width == 0 {
        return String::new();
    }
    let column = |time: f64| {
        let share = if end > 0.0 { (time / end).clamp(0.0, 1.0) } else { 0.0 };
        (share * width as f64).round() as usize
    };
    let first = column(from).min(width - 1);
    let last = column(to).clamp(first + 1, width);
    let (before, within, behind) = (" ".repeat(first), "━".repeat(last - first), width - last);
    format!("{before}{within}{}", " ".repeat(behind))
}

fn bar_style() -> Ansi {
    AnsiColor::Cyan.on_default()
}

fn level_style(level: Level) -> Ansi {
    match level {
        level if level <= Level::ERROR => AnsiColor::Red.on_default().bold(),
        level if level <= Level::WARN => AnsiColor::Yellow.on_default(),
        level if level <= Level::INFO => AnsiColor::Green.on_default(),
        _ => Ansi::new().dimmed(),
    }
}

fn instant(start: f64) -> String {
    // A time beyond the year 9999 is shown as a number.
    const LAST: f64 = 253_402_300_799.0;
    if !(0.0..=LAST).contains(&start) {
        return format!("{start}");
    }
    let start = UNIX_EPOCH + Duration::from_micros((start * 1e6).round() as u64);
    humantime::format_rfc3339_micros(start).to_string()
}

fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 0.0 => format!("-{}", duration(-seconds)),
        seconds if seconds < 1e-3 => format!("{:.0} us", seconds * 1e6),
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds if seconds < 1e5 => format!("{seconds:.2} s"),
        seconds => format!("{seconds:.1e} s"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn message(message: Value) -> Message {
        serde_json::from_value(message).unwrap()
    }

    #[test]
    fn bars_stand_where_their_time_is() {
        let message = message(json!({
            "start": 1_700_000_000.25, "end": 0.1, "data": {"user": {"id": 17}},
            "timers": [["all", 0, 0.1], ["second half", 0.05, 0.1], ["instant", 0.025, 0.025]],
            "logs": [[0.0005, 30, "text", {"n": 1}], [0.02, 15, "own"]],
        }));
        let expected = "\
2023-11-14T22:13:20.250000Z  100.0 ms
  all         ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  100.0 ms
  second half                  ━━━━━━━━━━━━━━━━   50.0 ms
  instant             ━                              0 us
      500 us  info  text {\"n\":1}
     20.0 ms  15    own
  user = {\"id\":17}
";
        assert_eq!(timeline(&message, Style { width: 60, color: false }), expected);
    }

    #[test]
    fn times_before_the_start_and_what_was_left_out_are_told() {
        let message = message(json!({
            "start": 1, "end": 1, "logs": [[-4.9, 30, "early"], [-0.0025, 12.5, "own"], [0, "x"]],
            "timers": [["before", -2, -1]],
        }));
        let drawn = timeline(&message, Style { width: 60, color: false });
        assert!(drawn.contains("-4.90 s  info  early"), "{drawn}");
        assert!(drawn.contains("-2.5 ms  12.5  own"), "{drawn}");
        assert!(drawn.ends_with("  1 lines, timers or values cannot be read\n"), "{drawn}");
    }

    #[test]
    fn colours_are_used_only_when_asked_for() {
        let message = message(json!({"start": 1, "logs": [[0, 10, "\u{1b}[31mred"]]}));
        assert!(!timeline(&message, Style { width: 80, color: false }).contains('\u{1b}'));
        let drawn = timeline(&message, Style { width: 80, color: true });
        assert!(drawn.contains('\u{1b}') && !drawn.contains("\u{1b}[31mred"), "{drawn:?}");
    }

    #[test]
    fn text_cannot_be_shown_in_another_order() {
        let message = message(json!({
            "start": 1, "timers": [["\u{202e}a", 0, 1]], "logs": [[0, 10, "\u{2066}b\u{9b}"]], "data": {"\u{202d}c": 1},
        }));
        let drawn = timeline(&message, Style { width: 80, color: false });
        for harmful in ['\u{202e}', '\u{2066}', '\u{9b}', '\u{202d}'] {
            assert!(!drawn.contains(harmful), "{drawn:?}");
        }
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_asked_for(
            width in 0..200usize,
            start in any::<f64>().prop_filter("a time", |time| time.is_finite()),
            names in prop::collection::vec(("\\PC{0,80}", 0.0..1e3, -1.0..1e3), 0..5),
            lines in prop::collection::vec((any::<f32>(), any::<u32>(), ".{0,120}"), 0..5),
        ) {
            let timers: Vec<_> =
                names.into_iter().map(|(name, from, took)| json!([name, from, from + took])).collect();
            let logs: Vec<_> = lines
                .into_iter()
                .map(|(time, level, text)| {
                    json!([if time.is_finite() { time } else { 0.0 }, level, text])
                })
                .collect();
            let message = message(json!({"start": start, "timers": timers, "logs": logs}));
            let drawn = timeline(&message, Style { width, color: false });
            prop_assert_eq!(drawn.lines().count(), 1 + message.timers.len() + message.logs.len());
            for line in drawn.lines().skip(1) {
                prop_assert!(line.width() <= width.max(MIN_WIDTH), "{} > {}: {}", line.width(), width, line);
            }
        }
    }
}
