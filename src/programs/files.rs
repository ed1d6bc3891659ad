//! The files that describe back-ends, and where they are looked for.
//!
//! Of files with one name, the most specific directory's counts; an empty one says
//! that there is none.

use super::capabilities::{self, Capabilities};
use super::json::{self, Json};
use crate::backend_client::Timeout;
use crate::error::{Error, Kind, Result};
use crate::socket;
use nix::fcntl::OFlag;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Below each of the directories.
const BELOW: &str = "qemu/vhost-user";
/// XDG_DATA_DIRS where it is not set.
const DATA_DIRS: &str = "/usr/local/share:/usr/share";

/// What is looked for, and where.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// Back-ends for this kind of device only, as "fs".
    pub device_type: Option<String>,
    /// In these directories, the most specific last; `None` for those of the
    /// convention.
    pub directories: Option<Vec<PathBuf>>,
    /// Also what is hidden, or of no use.
    pub all: bool,
}

/// A back-end that is described by a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendProgram {
    /// The file.
    pub file: PathBuf,
    /// What kind of device it is, as "block".
    pub device_type: String,
    /// What it is, for people.
    pub description: String,
    /// Where it is.
    pub binary: PathBuf,
    /// The file that counts in place of this one.
    pub hidden_by: Option<PathBuf>,
    /// Why the file is of no use.
    pub problem: Option<String>,
}

impl BackendProgram {
    /// Whether it can be used.
    pub fn is_usable(&self) -> bool {
        self.hidden_by.is_none() && self.problem.is_none()
    }

    /// Runs it for what it says of itself, by default for at most 5 s.
    pub fn ask(&self, timeout: Timeout) -> Result<Capabilities> {
        if let Some(problem) = &self.problem {
            let text = format!("{} is of no use: {problem}", self.file.display());
            return Err(Error::new(Kind::State, text));
        }
        let said = capabilities::ask(&self.binary, timeout)?;
        if said.device_type != self.device_type {
            return Err(Error::protocol(format!(
                "{} says that it is for {}, and {} that it is for {}",
                self.binary.display(),
                said.device_type,
                self.file.display(),
                self.device_type
            )));
        }
        Ok(said)
    }
}

/// Looks for back-ends. Those to be preferred come first.
pub fn find(search: &Search) -> Vec<BackendProgram> {
    let directories = match &search.directories {
        Some(directories) => directories.clone(),
        None => {
            // Who started this process may not tell it what to run with its rights.
            let trusted = socket::environment_is_trusted();
            conventional(|name| std::env::var_os(name).filter(|_| trusted))
        }
    };
    let mut found = Vec::new();
    // By name, the most specific last.
    let mut files: BTreeMap<OsString, Vec<PathBuf>> = BTreeMap::new();
    for directory in without_repeats(directories) {
        match names(&directory) {
            Ok(names) => {
                for name in names {
                    let file = directory.join(&name);
                    files.entry(name).or_default().push(file);
                }
            }
            Err(error) => {
                found.push(BackendProgram {
                    problem: Some(format!("the directory cannot be read: {error}")),
                    ..nothing(&directory)
                });
            }
        }
    }
    for candidates in files.into_values() {
        let Some((first, others)) = candidates.split_last() else {
            continue;
        };
        found.extend(read(first));
        for other in others.iter().rev() {
            found.extend(read(other).map(|program| BackendProgram {
                hidden_by: Some(first.clone()),
                ..program
            }));
        }
    }
    found.retain(|program| {
        let wanted = |name| program.problem.is_some() || program.device_type == name;
        let right = search.device_type.as_deref().is_none_or(wanted);
        right && (search.all || program.is_usable())
    });
    found
}

/// The directories of the convention, the most specific last.
fn conventional(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    // Of these variables none counts that is empty, nor what is no absolute path.
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let absolute = |path: &PathBuf| path.is_absolute();
    let data = set("XDG_DATA_DIRS").unwrap_or_else(|| DATA_DIRS.into());
    let data = std::env::split_paths(&data).collect::<Vec<_>>();
    let home = || set("HOME").map(|home| PathBuf::from(home).join(".config"));
    let config = set("XDG_CONFIG_HOME").map(PathBuf::from);
    // The most important of XDG_DATA_DIRS is the first. What packages install is
    // there whatever that says.
    std::iter::once(PathBuf::from("/usr/share"))
        .chain(data.into_iter().rev())
        .chain([PathBuf::from("/etc")])
        .chain(config.filter(absolute).or_else(home))
        .filter(absolute)
        .map(|directory| directory.join(BELOW))
        .collect()
}

/// Of those that are there twice, the last.
fn without_repeats(directories: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut kept = Vec::with_capacity(directories.len());
    for directory in directories.into_iter().rev() {
        if !kept.contains(&directory) {
            kept.push(directory);
        }
    }
    kept.reverse();
    kept
}

/// Of the files in a directory that may describe back-ends; none if it is not there.
fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if name.as_bytes().ends_with(b".json") && !name.as_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    Ok(names)
}

fn nothing(file: &Path) -> BackendProgram {
    BackendProgram {
        file: file.to_owned(),
        device_type: String::new(),
        description: String::new(),
        binary: PathBuf::new(),
        hidden_by: None,
        problem: None,
    }
}

/// Reads a file; nothing if it is empty.
fn read(file: &Path) -> Option<BackendProgram> {
    let problem = |problem: String| BackendProgram {
        problem: Some(problem),
        ..nothing(file)
    };
    match content(file) {
        Ok(text) if text.is_empty() => None,
        Ok(text) => Some(understand(file, &text).unwrap_or_else(problem)),
        Err(error) => Some(problem(error.to_string())),
    }
}

/// What is in a file, and a little more than is allowed at most.
fn content(file: &Path) -> io::Result<Vec<u8>> {
    // A pipe would be waited for.
    let mut options = File::options();
    let options = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let file = options.open(file)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = Vec::new();
    let limit = u64::try_from(json::MAX_SIZE).unwrap_or(u64::MAX);
    file.take(limit.saturating_add(1)).read_to_end(&mut text)?;
    Ok(text)
}

fn understand(file: &Path, text: &[u8]) -> std::result::Result<BackendProgram, String> {
    let value = json::parse(text).map_err(|error| error.to_string())?;
    if !matches!(value, Json::Object(_)) {
        return Err("it is no object".into());
    }
    let text = |name| match value.get(name) {
        None => Ok(""),
        Some(Json::String(text)) if !text.contains('\0') => Ok(text.as_str()),
        Some(_) => Err(format!("its {name} is no text")),
    };
    let needed = |name| match text(name)? {
        "" => Err(format!("it has no {name}")),
        text => Ok(text),
    };
    let binary = Path::new(needed("binary")?);
    if !binary.is_absolute() {
        return Err("its binary is no absolute path".into());
    }
    // What else there is may be ignored, and tags must be.
    Ok(BackendProgram {
        device_type: needed("type")?.to_owned(),
        description: text("description")?.to_owned(),
        binary: binary.to_owned(),
        ..nothing(file)
    })
}

#[cfg(test)]
pub(super) fn conventional_for_tests(variables: &[(&str, &str)]) -> Vec<PathBuf> {
    conventional(|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| OsString::from(value))
    })
}
