//! The elements of an SVG file that the picture needs.

use std::fmt::Write;

use super::theme::Theme;

/// Fonts that people have. Widths differ between them, so no text stands close to another.
const FONTS: &str = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif";

/// A picture in the making. Places are in pixels from the upper left corner.
#[derive(Debug)]
pub struct Svg(String);

/// Which part of a text is at its place.
#[derive(Debug, Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text looks.
#[derive(Debug, Clone, Copy)]
pub struct Font {
    pub size: f64,
    pub bold: bool,
    pub color: &'static str,
    pub anchor: Anchor,
}

impl Svg {
    pub fn new(width: f64, height: f64, title: &str, theme: &Theme) -> Self {
        let mut text = String::new();
        let _ = writeln!(
            text,
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="{FONTS}" role="img" aria-label="{}">"#,
            escape(title)
        );
        let _ = writeln!(
            text,
            r#"<rect width="{width}" height="{height}" rx="6" fill="{}"/>"#,
            theme.background
        );
        Self(text)
    }

    pub fn rect(&mut self, [x, y]: [f64; 2], [width, height]: [f64; 2], color: &str) {
        let _ = writeln!(
            self.0,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" fill="{color}"/>"#
        );
    }

    /// A rectangle of which only the edge is seen.
    pub fn outline(&mut self, [x, y]: [f64; 2], [width, height]: [f64; 2], color: &str) {
        let _ = writeln!(
            self.0,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" fill="none" stroke="{color}" stroke-dasharray="3 2"/>"#
        );
    }

    pub fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], color: &str) {
        let _ = writeln!(
            self.0,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{color}"/>"#
        );
    }

    pub fn curve(&mut self, points: &[[f64; 2]], color: &str, width: f64) {
        let mut list = String::new();
        for [x, y] in points {
            let _ = write!(list, "{x:.1},{y:.1} ");
        }
        let _ = writeln!(
            self.0,
            r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="{width}" stroke-linejoin="round"/>"#,
            list.trim_end()
        );
    }

    pub fn point(&mut self, [x, y]: [f64; 2], radius: f64, color: &str) {
        let _ =
            writeln!(self.0, r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" fill="{color}"/>"#);
    }

    pub fn text(&mut self, place: [f64; 2], font: Font, text: &str) {
        self.label(place, font, text, "", "");
    }

    /// A text, and a word after it that explains it in another colour.
    pub fn label(
        &mut self,
        [x, y]: [f64; 2],
        font: Font,
        text: &str,
        explanation: &str,
        color: &str,
    ) {
        let anchor = match font.anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if font.bold { r#" font-weight="600""# } else { "" };
        let _ = write!(
            self.0,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{}" text-anchor="{anchor}" fill="{}"><tspan{weight}>{}</tspan>"#,
            font.size,
            font.color,
            escape(text)
        );
        if !explanation.is_empty() {
            let _ =
                write!(self.0, r#"<tspan dx="5" fill="{color}">{}</tspan>"#, escape(explanation));
        }
        let _ = writeln!(self.0, "</text>");
    }

    pub fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::theme::LIGHT;
    use super::*;

    #[test]
    fn text_cannot_be_markup() {
        let mut svg = Svg::new(10.0, 10.0, "a \"title\"", &LIGHT);
        let font = Font { size: 11.0, bold: false, color: "#000", anchor: Anchor::End };
        svg.text([1.0, 2.0], font, "a < b & c");
        let text = svg.finish();
        assert!(text.contains("a &lt; b &amp; c</tspan>"), "{text}");
        assert!(text.contains(r#"aria-label="a &quot;title&quot;""#), "{text}");
    }
}
