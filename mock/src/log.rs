//! What happened, a line each.

use std::fmt;
use std::io::Write;
use std::time::Instant;

/// See the module. What is echoed has the time since the beginning before it.
pub(crate) struct Log {
    lines: Vec<String>,
    echo: Option<Box<dyn Write + Send>>,
    start: Instant,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            lines: Vec::new(),
            echo: None,
            start: Instant::now(),
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.lines).finish()
    }
}

impl Log {
    pub(crate) fn echo_to(&mut self, file: Box<dyn Write + Send>) {
        self.echo = Some(file);
    }

    pub(crate) fn line(&mut self, line: impl Into<String>) {
        let line = line.into();
        if let Some(echo) = &mut self.echo {
            let time = self.start.elapsed().as_secs_f64();
            // A log that cannot be written must not change what the mock does.
            _ = writeln!(echo, "{time:9.3} {line}").and_then(|()| echo.flush());
        }
        self.lines.push(line);
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines
    }
}
