//! What all panels have in common.

use super::axis::thousands;
use super::svg::{Anchor, Font, Svg};
use super::theme::Theme;

pub const PANEL_WIDTH: f64 = 376.0;

/// The height of question and explanation.
pub const HEAD: f64 = 44.0;

/// The upper left corner of a panel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    pub x: f64,
    pub y: f64,
}

pub fn head(svg: &mut Svg, place: Place, question: &str, explanation: &str, theme: &Theme) {
    let font = Font { size: 14.0, bold: true, color: theme.text, anchor: Anchor::Start };
    svg.text([place.x, place.y + 14.0], font, question);
    let font = Font { size: 11.0, bold: false, color: theme.explanation, anchor: Anchor::Start };
    svg.text([place.x, place.y + 30.0], font, explanation);
}

/// A reason that fits where a bar would be.
pub fn short(why: &str) -> &str {
    why.strip_prefix("the pool is ").unwrap_or(why)
}

/// A number as short as axes need it.
pub fn tick(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", thousands(value / 1e6)),
        value if value >= 1e4 => format!("{}k", thousands(value / 1e3)),
        value if value >= 1.0 => thousands(value),
        value => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_short() {
        let texts = [0.1, 1.0, 1000.0, 10_000.0, 1e7].map(tick);
        assert_eq!(texts, ["0.1", "1", "1,000", "10k", "10M"]);
    }
}
