//! From values to places, and to text.

/// How values are spread over a length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spread {
    Linear,
    Logarithmic,
}

/// The values from `least` to `most`, spread over the places from `start` to `end`.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    pub spread: Spread,
    pub least: f64,
    pub most: f64,
    pub start: f64,
    pub end: f64,
}

impl Axis {
    /// An axis that has room for all of `values`. A linear one starts at 0.
    pub fn around(spread: Spread, values: &[f64], start: f64, end: f64) -> Self {
        let most = values.iter().copied().fold(0.0, f64::max);
        let least = values.iter().copied().fold(most, f64::min);
        let least = match spread {
            Spread::Linear => 0.0,
            Spread::Logarithmic => least,
        };
        Self { spread, least, most, start, end }
    }

    /// The same axis, down to the power of ten below its least value.
    pub fn down_to_power_of_ten(self) -> Self {
        Self { least: 10_f64.powf(self.least.log10().floor()), ..self }
    }

    pub fn place(&self, value: f64) -> f64 {
        let part = match self.spread {
            Spread::Linear => (value - self.least) / (self.most - self.least),
            Spread::Logarithmic => (value / self.least).ln() / (self.most / self.least).ln(),
        };
        let part = if part.is_finite() { part } else { 1.0 };
        self.start + part * (self.end - self.start)
    }

    /// Round values on this axis: powers of ten, with 2 and 5 times them if there are few.
    pub fn ticks(&self) -> Vec<f64> {
        match self.spread {
            Spread::Linear => {
                let step = round_step(self.most / 4.0);
                let count = (self.most / step).floor() as u32;
                (0..=count).map(|number| f64::from(number) * step).collect()
            }
            Spread::Logarithmic => {
                let powers = self.powers_of_ten();
                if powers.len() > 3 {
                    return powers;
                }
                self.multiples(&[1.0, 2.0, 5.0])
            }
        }
    }

    pub fn powers_of_ten(&self) -> Vec<f64> {
        self.multiples(&[1.0])
    }

    fn multiples(&self, factors: &[f64]) -> Vec<f64> {
        let (first, last) = (self.least.log10().floor() as i32, self.most.log10().ceil() as i32);
        let all = (first..=last)
            .flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)));
        // A power of ten may be next to the limit by a rounding error.
        all.filter(|tick| (self.least * 0.999..=self.most * 1.001).contains(tick)).collect()
    }
}

/// 1, 2 or 5 times a power of ten, not less than `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= step);
    factor.unwrap_or(10.0) * power
}

/// Three digits that count at most, with commas between thousands.
pub fn number(value: f64) -> String {
    if value < 0.995 {
        return format!("{value:.2}");
    }
    if value < 9.95 {
        return format!("{value:.1}");
    }
    let unit = 10_f64.powi((value.log10().floor() as i32 - 2).max(0));
    thousands((value / unit).round() * unit)
}

/// A whole number with commas between thousands.
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let first = digits.len() % 3;
    let (first, rest) = digits.split_at(first);
    let groups = rest.as_bytes().chunks(3).map(|group| str::from_utf8(group).unwrap_or_default());
    let all: Vec<&str> =
        std::iter::once(first).filter(|first| !first.is_empty()).chain(groups).collect();
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-9, "{left} is not {right}");
    }

    #[test]
    fn a_logarithmic_axis_gives_each_power_of_ten_the_same_length() {
        let axis = Axis::around(Spread::Logarithmic, &[1.0, 1000.0], 0.0, 300.0);
        assert_close(axis.place(1.0), 0.0);
        assert_close(axis.place(10.0), 100.0);
        assert_close(axis.place(1000.0), 300.0);
    }

    #[test]
    fn a_linear_axis_starts_at_zero() {
        let axis = Axis::around(Spread::Linear, &[5.0, 10.0], 100.0, 200.0);
        assert_close(axis.place(0.0), 100.0);
        assert_close(axis.place(5.0), 150.0);
        assert_eq!(axis.ticks(), [0.0, 5.0, 10.0]);
    }

    #[test]
    fn an_axis_of_one_value_has_a_place_for_it() {
        let axis = Axis::around(Spread::Logarithmic, &[7.0], 0.0, 100.0);
        assert_close(axis.place(7.0), 100.0);
        assert_close(axis.down_to_power_of_ten().least, 1.0);
    }

    #[test]
    fn a_short_logarithmic_axis_has_more_ticks_than_powers_of_ten() {
        let axis = Axis::around(Spread::Logarithmic, &[30.0, 600.0], 0.0, 1.0);
        assert_eq!(axis.ticks(), [50.0, 100.0, 200.0, 500.0]);
        let axis = Axis::around(Spread::Logarithmic, &[1.0, 2000.0], 0.0, 1.0);
        assert_eq!(axis.ticks(), [1.0, 10.0, 100.0, 1000.0]);
    }

    #[test]
    fn numbers_have_three_digits_at_most() {
        let texts = [0.284, 2.06, 9.96, 53.2, 316.1, 171_144.0, 3_368_305.0].map(number);
        assert_eq!(texts, ["0.28", "2.1", "10", "53", "316", "171,000", "3,370,000"]);
    }
}
