//! The leaves of a filter's tree.

use crate::decision::{Decision, Policy, X32_BIT};

/// Consecutive numbers with the same decision, up to the next range's start.
#[derive(Debug, PartialEq)]
struct Range<'a> {
    start: u32,
    decision: &'a Decision,
    /// How many numbers there are that programs use.
    width: u32,
    /// Whether there are more numbers.
    has_more: bool,
}

impl Range<'_> {
    /// How many comparisons find it as an exception.
    fn comparisons(&self) -> u32 {
        if self.has_more { u32::MAX } else { self.width }
    }

    fn numbers(&self) -> std::ops::Range<u32> {
        self.start..self.start + self.width
    }
}

fn ranges(policy: &Policy) -> Vec<Range<'_>> {
    let mut ranges: Vec<Range<'_>> = Vec::new();
    // The first number behind the known ones, and the first of x32, stand for those that follow.
    for number in (0..=policy.last_known + 1).chain([X32_BIT]) {
        let decision = policy.decision(number);
        let has_more = number > policy.last_known;
        match ranges.last_mut() {
            Some(last) if last.decision == decision && !has_more => last.width += 1,
            _ => ranges.push(Range { start: number, decision, width: 1, has_more }),
        }
    }
    ranges
}

/// Consecutive numbers that one decision fits, but for a few, up to the next leaf's start.
#[derive(Debug)]
pub(crate) struct Leaf<'a> {
    pub(crate) start: u32,
    pub(crate) decision: &'a Decision,
    pub(crate) exceptions: Vec<(u32, &'a Decision)>,
    width: u32,
}

/// The most exceptions of a leaf.
const MAX_EXCEPTIONS: u32 = 3;

impl<'a> Leaf<'a> {
    fn new(ranges: &[Range<'a>], decision: &'a Decision) -> Self {
        let others = ranges.iter().filter(|range| range.decision != decision);
        Self {
            start: ranges[0].start,
            decision,
            exceptions: others
                .flat_map(|range| range.numbers().map(|number| (number, range.decision)))
                .collect(),
            width: ranges.iter().map(|range| range.width).sum(),
        }
    }
}

/// The leaves of a policy that need the fewest comparisons.
pub(crate) fn leaves(policy: &Policy) -> Vec<Leaf<'_>> {
    let ranges = ranges(policy);
    // For each number of ranges: the fewest comparisons for the first ranges, the start of their last leaf,
    // and its decision.
    let mut best = vec![(0, 0, &Decision::Refuse)];
    for end in 1..=ranges.len() {
        let mut candidates = Vec::new();
        // More ranges have more exceptions, whatever the decision.
        for start in end.saturating_sub(2 * MAX_EXCEPTIONS as usize + 1)..end {
            let leaf = &ranges[start..end];
            for decision in leaf.iter().map(|range| range.decision) {
                let others = leaf.iter().filter(|range| range.decision != decision);
                let exceptions = others.map(Range::comparisons).fold(0, u32::saturating_add);
                if exceptions <= MAX_EXCEPTIONS {
                    candidates.push((best[start].0 + exceptions + 1, start, decision));
                }
            }
        }
        let first = candidates.into_iter().min_by_key(|(comparisons, ..)| *comparisons);
        best.extend(first);
    }
    let mut leaves = Vec::new();
    let mut end = ranges.len();
    while end > 0 {
        let (_, start, decision) = best[end];
        leaves.push(Leaf::new(&ranges[start..end], decision));
        end = start;
    }
    leaves.reverse();
    leaves
}

/// The number of leaves in the low half: both halves have as many numbers as possible.
pub(crate) fn split(leaves: &[Leaf<'_>]) -> usize {
    let total: u32 = leaves.iter().map(|leaf| leaf.width).sum();
    let mut low = 0;
    let mut best = (u32::MAX, 1);
    for middle in 1..leaves.len() {
        low += leaves[middle - 1].width;
        best = best.min((low.abs_diff(total - low), middle));
    }
    best.1
}
