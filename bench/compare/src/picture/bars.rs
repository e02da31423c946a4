//! A panel of bars, one for each candidate of a work.

use super::axis::{Axis, Spread, number};
use super::panel::{self, PANEL_WIDTH, Place};
use super::svg::{Anchor, Font, Svg};
use super::theme::Theme;
use crate::report::Row;

/// What a panel of bars shows.
pub struct Bars {
    pub question: &'static str,
    /// What was done, in which unit, and which direction is better.
    pub explanation: &'static str,
    pub work: &'static str,
    /// In the order of the bars, each with the name that is shown and its language.
    pub candidates: &'static [Bar],
    pub spread: Spread,
    /// A value of the row, which the panel shows divided by `unit`.
    pub value: fn(&Row) -> Option<f64>,
    pub unit: f64,
}

/// Who a bar is of.
pub struct Bar {
    pub candidate: &'static str,
    pub name: &'static str,
    pub language: &'static str,
}

const LABELS: f64 = 184.0;
/// Where the value of the longest bar stands.
const VALUES: f64 = 60.0;
const ROW: f64 = 19.0;
const BAR: f64 = 12.0;
/// For the numbers of a logarithmic axis.
const TICKS: f64 = 18.0;

impl Bars {
    /// The bars for which the run has something to show.
    fn found<'a>(&self, rows: &'a [Row]) -> Vec<(&'static Bar, &'a Row)> {
        let candidates = self.candidates.iter();
        let found = candidates.filter_map(|bar| {
            let row =
                rows.iter().find(|row| row.work == self.work && row.candidate == bar.candidate);
            Some((bar, row.filter(|row| self.shown(row).is_some() || row.failed.is_some())?))
        });
        found.collect()
    }

    fn shown(&self, row: &Row) -> Option<f64> {
        (self.value)(row).map(|value| value / self.unit)
    }

    /// `None` if the run has none of the values.
    pub fn height(&self, rows: &[Row]) -> Option<f64> {
        let found = self.found(rows);
        found.iter().any(|(_, row)| self.shown(row).is_some()).then_some(())?;
        let ticks = if self.spread == Spread::Logarithmic { TICKS } else { 0.0 };
        Some(panel::HEAD + ROW * found.len() as f64 + ticks)
    }

    pub fn draw(&self, svg: &mut Svg, place: Place, rows: &[Row], theme: &Theme) {
        panel::head(svg, place, self.question, self.explanation, theme);
        let found = self.found(rows);
        let values: Vec<f64> = found.iter().filter_map(|(_, row)| self.shown(row)).collect();
        let start = place.x + LABELS;
        let end = place.x + PANEL_WIDTH - VALUES;
        let axis = Axis::around(self.spread, &values, start, end);
        let axis = match self.spread {
            Spread::Linear => axis,
            Spread::Logarithmic => axis.down_to_power_of_ten(),
        };
        let top = place.y + panel::HEAD;
        if self.spread == Spread::Logarithmic {
            draw_powers(svg, &axis, top, top + ROW * found.len() as f64, theme);
        }
        let label = Font { size: 11.0, bold: false, color: theme.text, anchor: Anchor::Start };
        for (number_of_row, (bar, row)) in found.into_iter().enumerate() {
            let y = top + ROW * number_of_row as f64;
            let baseline = y + BAR - 1.5;
            let ours = bar.candidate.starts_with("taskfork");
            let name_font = Font { bold: ours, ..label };
            svg.label([place.x, baseline], name_font, bar.name, bar.language, theme.explanation);
            let Some(value) = self.shown(row) else {
                let why = row.failed.as_deref().unwrap_or_default();
                let font = Font { color: theme.explanation, ..label };
                svg.text([start + 4.0, baseline], font, panel::short(why));
                continue;
            };
            // A bar of no length would look like a missing value.
            let length = (axis.place(value) - start).max(2.0);
            if bar.candidate.starts_with("floor") {
                svg.outline([start, y], [length, BAR], theme.explanation);
            } else {
                let color = if ours { theme.ours } else { theme.peer };
                svg.rect([start, y], [length, BAR], color);
            }
            svg.text([start + length + 5.0, baseline], name_font, &number(value));
        }
    }
}

/// A line and a number for each power of ten.
fn draw_powers(svg: &mut Svg, axis: &Axis, top: f64, bottom: f64, theme: &Theme) {
    let font = Font { size: 10.0, bold: false, color: theme.explanation, anchor: Anchor::Middle };
    let powers = axis.powers_of_ten();
    // With many, each second has a number.
    let step = if powers.len() > 4 { 2 } else { 1 };
    for (number, &power) in powers.iter().enumerate() {
        let x = axis.place(power);
        svg.line([x, top - 3.0], [x, bottom], theme.grid);
        if number % step == 0 {
            svg.text([x, bottom + 11.0], font, &panel::tick(power));
        }
    }
}
