//! When nodes are asked for what happened lately: one question at a time for each, seldom for those that tell nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// The least time between two questions to a node, which may have something new each time.
const GAP: Duration = Duration::from_secs(1);

/// How long a node is not asked after the second answer in a row that brought nothing. Each further one doubles it. The first one
/// does not count, because a worker shows its stack from the second question on.
const PAUSE: Duration = Duration::from_secs(4);

/// By how often it is doubled at most: 64 seconds.
const MAX_DOUBLED: u32 = 4;

/// What is known of the questions to a node.
#[derive(Debug)]
struct Asked {
    at: Instant,
    is_pending: bool,
    /// How many answers in a row have brought nothing.
    fruitless: u32,
    /// When it may be asked again.
    due: Instant,
}

/// The questions to the nodes of a service, by the ids of their pools.
#[derive(Debug, Default)]
pub(crate) struct Questions(BTreeMap<String, Asked>);

impl Questions {
    /// Those of the nodes that may be asked now, the one first that has waited longest.
    pub(crate) fn due(&self, ids: impl Iterator<Item = String>, now: Instant) -> Vec<String> {
        let asked = |id: &String| self.0.get(id);
        let is_due = |id: &String| asked(id).is_none_or(|it| !it.is_pending && it.due <= now);
        let mut due: Vec<_> = ids.filter(is_due).collect();
        due.sort_by_key(|id| asked(id).map(|it| it.at));
        due
    }

    /// The node is asked.
    pub(crate) fn begin(&mut self, id: &str, now: Instant) {
        let fruitless = self.0.get(id).map_or(0, |asked| asked.fruitless);
        let asked = Asked { at: now, is_pending: true, fruitless, due: now };
        self.0.insert(id.to_owned(), asked);
    }

    /// The question has ended, and has brought something or not.
    pub(crate) fn end(&mut self, id: &str, has_news: bool, now: Instant) {
        let Some(asked) = self.0.get_mut(id) else { return };
        asked.is_pending = false;
        asked.fruitless = if has_news { 0 } else { asked.fruitless.saturating_add(1) };
        asked.due = match asked.fruitless {
            0 | 1 => asked.at + GAP,
            more => now + PAUSE * 2_u32.pow((more - 2).min(MAX_DOUBLED)),
        };
    }

    /// Forgets nodes that are not shown any more, once they are not being asked.
    pub(crate) fn retain(&mut self, is_shown: impl Fn(&str) -> bool) {
        self.0.retain(|id, asked| asked.is_pending || is_shown(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(questions: &Questions, now: Instant) -> Vec<String> {
        questions.due(["a", "b", "c"].into_iter().map(str::to_owned), now)
    }

    #[test]
    fn a_node_has_one_question_and_those_that_have_waited_come_first() {
        let (mut questions, start) = (Questions::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(due(&questions, at(0)), ["a", "b", "c"]);
        for (second, id) in (0..).zip(["b", "a", "c"]) {
            questions.begin(id, at(second));
        }
        assert_eq!(due(&questions, at(9)), [""; 0]);
        questions.retain(|_| false);
        assert_eq!(due(&questions, at(9)), [""; 0], "they are asked all the same");
        ["c", "a", "b"].iter().for_each(|id| questions.end(id, true, at(9)));
        assert_eq!(due(&questions, at(9)), ["b", "a", "c"]);
        questions.begin("b", at(10));
        questions.end("b", true, at(10));
        assert_eq!(due(&questions, at(10)), ["a", "c"]);
        assert_eq!(due(&questions, at(11)), ["a", "c", "b"]);
        questions.retain(|id| id != "c");
        assert_eq!(due(&questions, at(11)), ["c", "a", "b"]);
    }

    #[test]
    fn a_node_whose_answers_bring_nothing_is_asked_more_and_more_seldom() {
        let mut questions = Questions::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for has_news in [false, false, false, false, false, false, false, false, true, false] {
            questions.begin("a", now);
            questions.end("a", has_news, now);
            let begun = now;
            while !due(&questions, now).contains(&"a".to_owned()) {
                now += Duration::from_secs(1);
            }
            pauses.push((now - begun).as_secs());
        }
        assert_eq!(pauses, [1, 4, 8, 16, 32, 64, 64, 64, 1, 1]);
    }
}
