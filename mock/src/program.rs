//! How far a script has come: which rule counts what, which expectation waits.

use crate::fault::Fault;
use crate::message::Message;
use crate::script::{Rule, Script, Step, What};

/// See the module.
#[derive(Debug)]
pub(crate) struct Program {
    rules: Vec<(Rule, u64)>,
    steps: std::vec::IntoIter<Step>,
    /// An expectation failed: what follows it is not reached any more.
    stuck: bool,
    /// What the expectation that waits has seen instead.
    near: Option<String>,
    failures: Vec<String>,
}

/// What the script says about a message.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) faults: Vec<Fault>,
    /// An expectation waited for a message that is refused.
    pub(crate) refusal_expected: bool,
}

impl Program {
    pub(crate) fn new(script: &Script) -> Self {
        Self {
            rules: script.rules.iter().map(|rule| (rule.clone(), 0)).collect(),
            steps: script.steps.clone().into_iter(),
            stuck: false,
            near: None,
            failures: Vec::new(),
        }
    }

    /// Notes that something went wrong.
    pub(crate) fn fail(&mut self, text: String) {
        self.failures.push(text);
    }

    /// The next step that is to be done at once, with its place in words.
    pub(crate) fn action(&mut self) -> Option<(Fault, String)> {
        if self.stuck {
            return None;
        }
        match &self.steps.as_slice().first()?.what {
            What::Expect { .. } => None,
            What::Do(..) => match self.steps.next()? {
                Step {
                    what: What::Do(fault),
                    line,
                    source,
                } => Some((fault, format!("line {line}: {source}"))),
                _ => None,
            },
        }
    }

    /// What the script says about this message; `refused` tells whether the mode
    /// refuses it.
    pub(crate) fn message(&mut self, message: &Message, refused: bool) -> Found {
        let mut found = Found::default();
        for (rule, count) in &mut self.rules {
            if rule.pattern.fits(message, refused) {
                *count = count.saturating_add(1);
                if rule.nth.is_none_or(|nth| nth.is(*count)) {
                    found.faults.extend(rule.faults.iter().cloned());
                }
            }
        }
        self.expectation(message, refused, &mut found);
        found
    }

    fn expectation(&mut self, message: &Message, refused: bool, found: &mut Found) {
        let Some(step) = self.steps.as_slice().first().filter(|_| !self.stuck) else {
            return;
        };
        let What::Expect {
            pattern,
            next,
            faults,
        } = &step.what
        else {
            return;
        };
        if pattern.fits(message, refused) {
            found.refusal_expected = pattern.wants_refusal();
            found.faults.extend(faults.iter().cloned());
            self.near = None;
            self.steps.next();
        } else if *next {
            self.stuck = true;
            self.near = Some(message.text());
        } else if pattern.names(message) {
            self.near = Some(message.text());
        }
    }

    /// What was not met, at the end.
    pub(crate) fn unmet(&self) -> Vec<String> {
        let mut unmet = self.failures.clone();
        let mut first = true;
        for step in self.steps.as_slice() {
            let text = format!("line {}: {}", step.line, step.source);
            unmet.push(match (&self.near, first) {
                (Some(near), true) => format!("{text}: came instead: {near}"),
                (None, true) => format!("{text}: did not come"),
                (_, false) => format!("{text}: not reached"),
            });
            first = false;
        }
        unmet
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::message::tests::request;

    fn program(text: &str) -> Program {
        Program::new(&Script::parse(text).unwrap())
    }

    #[test]
    fn rules_count_what_fits() {
        let mut program = program("on SET_OWNER nth=2: drop\non any nth=3+: close");
        let mut faults = |code| program.message(&request(code, 1, &[]), false).faults;
        assert_eq!((faults(3), faults(1)), (vec![], vec![]));
        assert_eq!(faults(3), [Fault::Drop, Fault::Close]);
        assert_eq!(faults(3), [Fault::Close]);
    }

    #[test]
    fn expectations_wait_in_order() {
        let mut program =
            program("expect SET_OWNER: drop\ndelay 1ms\nexpect SET_MEM_TABLE fds=2\nnever");
        assert!(program.action().is_none(), "it waits");
        assert_eq!(program.message(&request(1, 1, &[]), false).faults, []);
        assert_eq!(
            program.message(&request(3, 1, &[]), false).faults,
            [Fault::Drop]
        );
        assert!(program.action().is_some() && program.action().is_none());
        assert_eq!(
            program.unmet(),
            [
                "line 3: expect SET_MEM_TABLE fds=2: did not come",
                "line 4: never: not reached"
            ]
        );
        program.message(&request(5, 1, &[0; 8]), false);
        let near = "line 3: expect SET_MEM_TABLE fds=2: came instead: SET_MEM_TABLE regions=0";
        assert_eq!(program.unmet().first().unwrap(), near);
    }

    #[test]
    fn next_means_next() {
        let mut program = program("expect next SET_OWNER\nexpect GET_FEATURES");
        program.message(&request(1, 1, &[]), false);
        program.message(&request(3, 1, &[]), false);
        let right = [
            "line 1: expect next SET_OWNER: came instead: GET_FEATURES",
            "line 2: expect GET_FEATURES: not reached",
        ];
        assert_eq!(program.unmet(), right);
    }

    #[test]
    fn refusals_can_be_expected() {
        let mut program = program("expect SET_OWNER refused");
        assert!(!program.message(&request(3, 1, &[]), false).refusal_expected);
        assert!(program.message(&request(3, 1, &[]), true).refusal_expected);
        assert!(program.unmet().is_empty());
    }
}
