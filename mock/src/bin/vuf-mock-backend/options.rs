//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use vuf_mock_backend::Mode;

/// What it takes.
pub const USAGE: &str = "\
usage: vuf-mock-backend --socket PATH [--script FILE] [-e STATEMENT]...
                        [--mode MODE] [--log FILE|-] [--once | --connections N]
                        [--connect]";

const HELP: &str = "
A vhost-user back-end that follows a script.

  --socket PATH     listen there; prints \"ready\" when a front-end can connect
  --connect         connect to PATH instead, as soon as somebody listens there
  --script FILE     what to do; without any it is a polite back-end
  -e STATEMENT      one more statement, after those of the file
  --mode MODE       polite, dpdk, libvhost-user, rust-vmm-old or rust-vmm-new
  --log FILE        write there what happens; - is the standard error
  --once            end after one connection
  --connections N   end after so many; without it SIGINT or SIGTERM ends it
  --help            this text
  --version         the version

Exits with 0 if every expectation of the script was met and the mode refused
nothing, with 1 if not (and says what), with 2 if it cannot be run.
docs/mock-backend.md describes the language.
";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve.
    Run(Options),
    /// Print this.
    Say(String),
}

/// How to serve.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Where to listen or connect to.
    pub socket: PathBuf,
    /// Connect instead of listening.
    pub connect: bool,
    /// The script.
    pub script: Option<PathBuf>,
    /// More of it.
    pub statements: Vec<String>,
    /// Where to log to.
    pub log: Option<PathBuf>,
    /// How many connections to serve; as many as come if it is not told.
    pub connections: Option<u64>,
}

/// Reads the arguments after the program's name.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut args = args;
    let mut options = Options::default();
    let mut socket = None;
    while let Some(arg) = args.next() {
        let name = arg.to_string_lossy().into_owned();
        let mut value = || args.next().ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "--socket" => socket = Some(value()?.into()),
            "--script" => options.script = Some(value()?.into()),
            "--log" => options.log = Some(value()?.into()),
            "--connect" => options.connect = true,
            "--once" => options.connections = Some(1),
            "--connections" => options.connections = Some(count(&text(value()?)?)?),
            "-e" => options.statements.push(statement(text(value()?)?)?),
            "--mode" => {
                let mode: Mode = text(value()?)?.parse()?;
                options.statements.push(format!("mode {mode}"));
            }
            "-h" | "--help" => return Ok(Command::Say(format!("{USAGE}\n{HELP}"))),
            "--version" => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Command::Say(format!("vuf-mock-backend {version}\n")));
            }
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    options.socket = socket.ok_or("--socket PATH is missing")?;
    Ok(Command::Run(options))
}

fn text(value: OsString) -> Result<String, String> {
    value
        .into_string()
        .map_err(|value| format!("{} is not UTF-8", value.to_string_lossy()))
}

fn count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text} is no number of connections")),
        Ok(count) => Ok(count),
    }
}

/// Lines are counted, so one argument is one line.
fn statement(text: String) -> Result<String, String> {
    if text.contains('\n') {
        Err("-e takes one statement".to_owned())
    } else {
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(args: &str) -> Result<Command, String> {
        parse(args.split_whitespace().map(OsString::from))
    }

    #[test]
    fn all_of_it() {
        let args = "--socket /s --script f -e never --mode dpdk --log - --connections 3 --connect";
        let right = Options {
            socket: "/s".into(),
            connect: true,
            script: Some("f".into()),
            statements: vec!["never".to_owned(), "mode dpdk".to_owned()],
            log: Some("-".into()),
            connections: Some(3),
        };
        assert_eq!(command(args), Ok(Command::Run(right)));
    }

    #[test]
    fn mistakes() {
        let error = |args| command(args).err().unwrap_or_default();
        assert_eq!(error(""), "--socket PATH is missing");
        assert_eq!(error("--socket"), "--socket needs a value");
        assert_eq!(error("--sockets x"), "unknown argument --sockets");
        assert_eq!(
            error("--socket /s --connections 0"),
            "0 is no number of connections"
        );
        assert!(error("--socket /s --mode qemu").starts_with("no such mode"));
    }

    #[test]
    fn help_names_every_option() {
        let Ok(Command::Say(help)) = command("--help") else {
            unreachable!("it prints")
        };
        for option in [
            "--socket",
            "--script",
            "-e",
            "--mode",
            "--log",
            "--once",
            "--connections",
            "--connect",
            "--help",
            "--version",
        ] {
            assert!(help.contains(option), "{option}");
        }
        for mode in Mode::ALL {
            assert!(help.contains(mode.name()), "{mode}");
        }
    }
}
