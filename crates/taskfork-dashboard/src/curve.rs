//! The points of the last 15 minutes.

use std::collections::VecDeque;

use crate::model::Point;

/// How long a point is kept, in milliseconds.
const KEPT: f64 = 15.0 * 60.0 * 1000.0;

/// The most points: one for each second.
const MAX_POINTS: usize = 900;

#[derive(Debug, Default)]
pub(crate) struct Curve {
    points: VecDeque<Point>,
    /// How many of the last ones have not been taken as new.
    new: usize,
}

impl Curve {
    pub(crate) fn push(&mut self, point: Point) {
        // The clock was set back.
        while self.points.back().is_some_and(|last| last.at >= point.at) {
            self.points.pop_back();
        }
        while self.points.len() >= MAX_POINTS
            || self.points.front().is_some_and(|first| first.at < point.at - KEPT)
        {
            self.points.pop_front();
        }
        self.points.push_back(point);
        self.new = (self.new + 1).min(self.points.len());
    }

    pub(crate) fn all(&self) -> Vec<Point> {
        self.points.iter().copied().collect()
    }

    /// The points since the last time that this was called.
    pub(crate) fn take_new(&mut self) -> Vec<Point> {
        let known = self.points.len().saturating_sub(std::mem::take(&mut self.new));
        self.points.range(known..).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_kept_for_15_minutes_and_new_ones_are_told_once() {
        let mut curve = Curve::default();
        for second in 0..2000 {
            curve.push(Point { at: f64::from(second) * 500.0, ..Point::default() });
        }
        assert_eq!((curve.all().len(), curve.take_new().len()), (MAX_POINTS, MAX_POINTS));
        curve.push(Point { at: 1e9, ..Point::default() });
        assert_eq!(curve.take_new(), curve.all());
        assert_eq!((curve.all().len(), curve.take_new().len()), (1, 0));
    }

    #[test]
    fn points_stay_in_order_if_the_clock_is_set_back() {
        let mut curve = Curve::default();
        for at in [1000.0, 2000.0, 3000.0, 1500.0, 2500.0] {
            curve.push(Point { at, ..Point::default() });
        }
        let times: Vec<_> = curve.all().iter().map(|point| point.at).collect();
        assert_eq!(times, [1000.0, 1500.0, 2500.0]);
    }
}
