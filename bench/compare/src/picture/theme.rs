//! The colours of a picture.

/// For a light or a dark page.
#[derive(Debug, Clone, Copy)]
pub struct Theme {
    pub background: &'static str,
    pub text: &'static str,
    /// Of what explains: languages, units, axes.
    pub explanation: &'static str,
    pub grid: &'static str,
    pub ours: &'static str,
    pub peer: &'static str,
    /// Of the peers that are curves, as curves need to be told apart.
    pub curves: [&'static str; 3],
}

pub const LIGHT: Theme = Theme {
    background: "#ffffff",
    text: "#1f2328",
    explanation: "#656d76",
    grid: "#d8dee4",
    ours: "#0969da",
    peer: "#afb8c1",
    curves: ["#bc4c00", "#8250df", "#6e7781"],
};

pub const DARK: Theme = Theme {
    background: "#0d1117",
    text: "#e6edf3",
    explanation: "#9198a1",
    grid: "#2a313a",
    ours: "#4493f8",
    peer: "#656c76",
    curves: ["#f0883e", "#ab7df8", "#9198a1"],
};
