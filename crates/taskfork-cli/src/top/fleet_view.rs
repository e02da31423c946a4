//! The screen of `top` for the nodes of a service, and the effects of its keys.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use log_defer::printable;
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table, TableState};
use taskfork_gateway::taskfork_nats::NodeStatus;

use super::Shown;
use super::events::{FleetRequest, TopEvent};
use super::view::KeyEffect;
use crate::fleet_status::{self, ago};
use crate::status;

/// How long a node that does not answer is shown.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// The greatest width of a column.
const MAX_WIDTH: usize = 24;

/// The keys that work.
const KEYS: &str = "↑↓ choose a node   w its workers   q quit";

#[derive(Debug)]
pub(super) struct FleetView {
    service: String,
    requests: Sender<FleetRequest>,
    /// The nodes by name, and when each has last answered.
    nodes: BTreeMap<String, (NodeStatus, Instant)>,
    /// The number of the selected row.
    table: TableState,
    /// The node whose workers are shown, and its answer.
    opened: Option<(String, Option<NodeStatus>)>,
    message: String,
}

impl FleetView {
    pub(super) fn new(service: String, requests: Sender<FleetRequest>) -> Self {
        let mut view = Self {
            service,
            requests,
            nodes: BTreeMap::new(),
            table: TableState::default(),
            opened: None,
            message: "asks the nodes".to_owned(),
        };
        view.ask_for(None);
        view
    }

    /// Asks all nodes at once, and from now on one of them for its workers.
    fn ask_for(&mut self, node: Option<String>) {
        if self.requests.send(FleetRequest::Workers(node)).is_err() {
            self.message = "the nodes are asked no more".to_owned();
        }
    }

    fn update(&mut self, answer: Result<Vec<NodeStatus>, String>, now: Instant) {
        match answer {
            Ok(nodes) => {
                self.message = match nodes.len() {
                    0 => "no node answers".to_owned(),
                    _ => String::new(),
                };
                for node in nodes {
                    self.nodes.insert(node.node.clone(), (node, now));
                }
            }
            Err(error) => self.message = printable(&error).into_owned(),
        }
        self.nodes.retain(|_, (_, heard)| now.saturating_duration_since(*heard) < FORGOTTEN);
        self.select(self.table.selected().unwrap_or(0));
    }

    /// Selects this row, or the last one if there are fewer.
    fn select(&mut self, row: usize) {
        let last = self.nodes.len().checked_sub(1);
        self.table.select(last.map(|last| row.min(last)));
    }

    fn toggle_workers(&mut self) {
        let selected = self.table.selected().and_then(|row| self.nodes.keys().nth(row)).cloned();
        self.opened = match &self.opened {
            Some((opened, _)) if Some(opened) == selected.as_ref() => None,
            _ => selected.map(|node| (node, None)),
        };
        self.ask_for(self.opened.as_ref().map(|(node, _)| node.clone()));
    }

    fn draw_nodes(&mut self, frame: &mut Frame<'_>, area: Rect, now: Instant) {
        let headers = fleet_status::COLUMNS.iter().map(|&header| header.to_owned());
        let rows = self.nodes.values().map(|(node, heard)| {
            let contact = ago(now.saturating_duration_since(*heard));
            fleet_status::row(node).into_iter().chain([contact]).collect()
        });
        let headers = headers.chain(["last contact".to_owned()]).collect();
        let cells: Vec<Vec<String>> = std::iter::once(headers).chain(rows).collect();
        frame.render_stateful_widget(table(&cells), area, &mut self.table);
    }

    fn draw_workers(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some((name, answer)) = &self.opened else { return };
        let [head, body] =
            Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        let Some(server) = answer.as_ref().and_then(fleet_status::server) else {
            let text = format!("node {}: no answer yet", printable(name));
            return frame.render_widget(Paragraph::new(text), head);
        };
        let text = format!("node {}: {}", printable(name), status::headline(&server));
        frame.render_widget(Paragraph::new(text), head);
        let headers = status::COLUMNS.map(str::to_owned).to_vec();
        let rows = server.workers.iter().map(|worker| status::row(worker).to_vec());
        let cells: Vec<_> = std::iter::once(headers).chain(rows).collect();
        frame.render_widget(table(&cells), body);
    }
}

/// A table of which the first row has the headers.
fn table(cells: &[Vec<String>]) -> Table<'static> {
    let columns = cells.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let widest = cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        Constraint::Length(u16::try_from(widest.min(MAX_WIDTH)).unwrap_or(u16::MAX))
    };
    let mut rows = cells.iter().map(|row| Row::new(row.clone()));
    let headers = rows.next().unwrap_or_default();
    Table::new(rows.collect::<Vec<_>>(), (0..columns).map(width).collect::<Vec<_>>())
        .header(headers.style(Style::new().add_modifier(Modifier::UNDERLINED)))
        .row_highlight_style(Style::new().reversed())
}

impl Shown for FleetView {
    fn draw(&mut self, frame: &mut Frame<'_>) {
        let (now, share) = (Instant::now(), if self.opened.is_some() { 1 } else { 0 });
        let [head, nodes, workers, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Fill(1),
            Constraint::Fill(share),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let (service, count) = (printable(&self.service).into_owned(), self.nodes.len());
        frame.render_widget(Paragraph::new(format!("service {service}: {count} nodes")), head);
        self.draw_nodes(frame, nodes, now);
        self.draw_workers(frame, workers);
        let line = match self.message.is_empty() {
            true => Line::from(KEYS).dim(),
            false => Line::from(self.message.clone()),
        };
        frame.render_widget(Paragraph::new(line), foot);
    }

    fn key(&mut self, key: KeyEvent) -> KeyEffect {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => KeyEffect::Quit,
                KeyCode::Char('z') => KeyEffect::Suspend,
                _ => KeyEffect::None,
            };
        }
        let row = self.table.selected().unwrap_or(0);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return KeyEffect::Quit,
            KeyCode::Down | KeyCode::Char('j') => self.select(row.saturating_add(1)),
            KeyCode::Up => self.select(row.saturating_sub(1)),
            KeyCode::Home => self.select(0),
            KeyCode::End => self.select(usize::MAX),
            KeyCode::Char('w') | KeyCode::Enter => self.toggle_workers(),
            _ => {}
        }
        KeyEffect::None
    }

    fn handle_answer(&mut self, event: TopEvent) {
        match event {
            TopEvent::NodesRead(answer) => self.update(answer, Instant::now()),
            TopEvent::NodeRead(Ok(Some(node))) => {
                if let Some((name, answer)) = &mut self.opened
                    && *name == node.node
                {
                    *answer = Some(node);
                }
            }
            TopEvent::NodeRead(Err(error)) => self.message = printable(&error).into_owned(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn node(name: &str) -> NodeStatus {
        let worker = json!({
            "number": 7, "pid": 8, "state": "busy", "seconds": 1.0, "method": "shrink", "calls": 2, "checkouts": 0,
        });
        serde_json::from_value(json!({
            "node": name, "id": "i", "version": "1.2.0", "labels": ["gpu=a100"], "sessions": 4, "free": 3,
            "draining": false, "details": {
                "workers": 1, "max_workers": 4, "busy": 1, "calls": 2,
                "server": {
                    "name": "s", "pid": 1, "seconds": 1.0, "accepting": true, "max_workers": 4, "forked": 1,
                    "refused": 0, "deaths": {}, "workers": [worker],
                },
            },
        }))
        .unwrap()
    }

    fn screen(view: &mut FleetView) -> String {
        let mut terminal = Terminal::new(TestBackend::new(100, 12)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    fn press(view: &mut FleetView, code: KeyCode) -> KeyEffect {
        view.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn nodes_are_rows_and_a_key_shows_the_workers_of_one() {
        let (requests, requested) = channel();
        let mut view = FleetView::new("resize".to_owned(), requests);
        view.handle_answer(TopEvent::NodesRead(Ok(vec![node("a"), node("b")])));
        let text = screen(&mut view);
        for part in ["resize: 2 nodes", "gpu=a100", "1/4", "last contact", "now"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("shrink"), "{text}");

        press(&mut view, KeyCode::Down);
        press(&mut view, KeyCode::Char('w'));
        assert!(screen(&mut view).contains("node b: no answer yet"));
        let asked: Vec<_> = requested.try_iter().collect();
        assert!(matches!(&asked[..], [_, FleetRequest::Workers(Some(node))] if node == "b"));
        // A late answer of another node changes nothing.
        view.handle_answer(TopEvent::NodeRead(Ok(Some(node("a")))));
        assert!(!screen(&mut view).contains("shrink"));
        view.handle_answer(TopEvent::NodeRead(Ok(Some(node("b")))));
        assert!(screen(&mut view).contains("shrink"));
        press(&mut view, KeyCode::Char('w'));
        assert!(!screen(&mut view).contains("shrink"));
        assert_eq!(press(&mut view, KeyCode::Char('q')), KeyEffect::Quit);
    }

    #[test]
    fn a_node_that_does_not_answer_is_shown_for_a_while() {
        let (requests, _requested) = channel();
        let mut view = FleetView::new("resize".to_owned(), requests);
        let began = Instant::now();
        view.update(Ok(vec![node("a")]), began);
        view.update(Ok(vec![node("b")]), began + FORGOTTEN / 2);
        assert_eq!(view.nodes.len(), 2);
        view.update(Ok(vec![]), began + FORGOTTEN);
        assert_eq!(view.nodes.keys().collect::<Vec<_>>(), ["b"]);
        view.update(Err("gone\u{1b}".to_owned()), began + FORGOTTEN);
        assert!(screen(&mut view).contains("gone\\x1b"));
    }
}
