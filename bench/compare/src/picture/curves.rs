//! A panel of curves: a value over another one, for some candidates.

use super::axis::{Axis, Spread, thousands};
use super::panel::{self, PANEL_WIDTH, Place};
use super::svg::{Anchor, Font, Svg};
use super::theme::Theme;
use crate::report::Row;

/// What a panel of curves shows.
pub struct Curves {
    pub question: &'static str,
    pub explanation: &'static str,
    /// What the lower axis is.
    pub below: &'static str,
    /// The works, each with its place on the lower axis.
    pub works: &'static [(&'static str, f64)],
    pub candidates: &'static [Curve],
    pub spreads: Spreads,
    pub value: fn(&Row) -> Option<f64>,
    /// By what values are divided.
    pub unit: f64,
}

/// How the values of both axes are spread.
pub struct Spreads {
    pub below: Spread,
    pub left: Spread,
}

/// Who a curve is of. All but ours have a number in the colours of the theme.
pub struct Curve {
    pub candidate: &'static str,
    pub name: &'static str,
    pub language: &'static str,
    pub color: Option<usize>,
}

const HEIGHT: f64 = 250.0;
/// The room of names, of numbers on the left and of numbers below.
const NAMES: f64 = 36.0;
const LEFT: f64 = 44.0;
const BELOW: f64 = 38.0;

impl Curve {
    fn color(&self, theme: &Theme) -> &'static str {
        self.color.map_or(theme.ours, |number| theme.curves[number])
    }

    fn width(&self) -> f64 {
        if self.color.is_none() { 2.5 } else { 1.5 }
    }
}

impl Curves {
    /// The points of a curve for which the run has values.
    fn points(&self, candidate: &str, rows: &[Row]) -> Vec<[f64; 2]> {
        let point = |&(work, x): &(&str, f64)| {
            let row = self.row(work, candidate, rows)?;
            Some([x, (self.value)(row)? / self.unit])
        };
        self.works.iter().filter_map(point).collect()
    }

    fn row<'a>(&self, work: &str, candidate: &str, rows: &'a [Row]) -> Option<&'a Row> {
        rows.iter().find(|row| row.work == work && row.candidate == candidate)
    }

    /// `None` if the run has no curve, which takes two points.
    pub fn height(&self, rows: &[Row]) -> Option<f64> {
        let mut curves = self.candidates.iter().map(|curve| self.points(curve.candidate, rows));
        curves.any(|points| points.len() > 1).then_some(HEIGHT)
    }

    pub fn draw(&self, svg: &mut Svg, place: Place, rows: &[Row], theme: &Theme) {
        panel::head(svg, place, self.question, self.explanation, theme);
        self.draw_names(svg, place, theme);
        let all: Vec<_> = self
            .candidates
            .iter()
            .map(|curve| (curve, self.points(curve.candidate, rows)))
            .collect();
        let values: Vec<f64> =
            all.iter().flat_map(|(_, points)| points.iter().map(|[_, y]| *y)).collect();
        let places: Vec<f64> = self.works.iter().map(|(_, x)| *x).collect();
        let top = place.y + panel::HEAD + NAMES;
        let bottom = place.y + HEIGHT - BELOW;
        let (start, end) = (place.x + LEFT, place.x + PANEL_WIDTH - 14.0);
        let x = Axis::around(self.spreads.below, &places, start, end);
        let y = Axis::around(self.spreads.left, &values, bottom, top);
        self.draw_axes(svg, &x, &y, theme);
        // Ours last, on top of the others.
        for (curve, points) in all.iter().rev() {
            let color = curve.color(theme);
            let drawn: Vec<[f64; 2]> =
                points.iter().map(|point| [x.place(point[0]), y.place(point[1])]).collect();
            svg.curve(&drawn, color, curve.width());
            for &point in &drawn {
                svg.point(point, curve.width() + 0.7, color);
            }
            self.draw_failures(svg, curve, rows, &x, top, theme);
        }
    }

    /// A cross above each place that a candidate has no value for.
    fn draw_failures(
        &self,
        svg: &mut Svg,
        curve: &Curve,
        rows: &[Row],
        x: &Axis,
        top: f64,
        theme: &Theme,
    ) {
        let font =
            Font { size: 13.0, bold: true, color: curve.color(theme), anchor: Anchor::Middle };
        for (work, at) in self.works {
            let failed = self.row(work, curve.candidate, rows).filter(|row| row.failed.is_some());
            if failed.is_some() {
                svg.text([x.place(*at), top + 4.0], font, "×");
            }
        }
    }

    /// The names in two lines, each after a piece of its curve.
    fn draw_names(&self, svg: &mut Svg, place: Place, theme: &Theme) {
        for (number, curve) in self.candidates.iter().enumerate() {
            let x = place.x + LEFT + (number % 2) as f64 * 168.0;
            let y = place.y + panel::HEAD + (number / 2) as f64 * 15.0;
            let color = curve.color(theme);
            svg.curve(&[[x, y], [x + 16.0, y]], color, curve.width());
            svg.point([x + 8.0, y], curve.width() + 0.7, color);
            let ours = curve.color.is_none();
            let font = Font { size: 11.0, bold: ours, color: theme.text, anchor: Anchor::Start };
            svg.label([x + 21.0, y + 4.0], font, curve.name, curve.language, theme.explanation);
        }
    }

    fn draw_axes(&self, svg: &mut Svg, x: &Axis, y: &Axis, theme: &Theme) {
        let font = Font { size: 10.0, bold: false, color: theme.explanation, anchor: Anchor::End };
        for tick in y.ticks() {
            let at = y.place(tick);
            svg.line([x.start, at], [x.end, at], theme.grid);
            svg.text([x.start - 6.0, at + 3.5], font, &panel::tick(tick));
        }
        let middle = Font { anchor: Anchor::Middle, ..font };
        let mut free = f64::MIN;
        for (_, value) in self.works {
            let at = x.place(*value);
            svg.line([at, y.start], [at, y.start + 3.0], theme.explanation);
            // Where works are close to each other, some have no number.
            if at >= free {
                svg.text([at, y.start + 15.0], middle, &thousands(*value));
                free = at + 34.0;
            }
        }
        svg.text([f64::midpoint(x.start, x.end), y.start + 31.0], middle, self.below);
    }
}
