//! A file that describes a back-end, whatever is in it: held against another reader
//! of JSON.

use serde_json::Value;
use std::path::{Path, PathBuf};
use vhost_user_frontend::{BackendProgram, Search, find_backend_programs};

/// A directory, in memory where there is such a place, with one file.
struct Place {
    directory: PathBuf,
    file: PathBuf,
}

impl Place {
    fn with(data: &[u8]) -> Self {
        let place = match Path::new("/dev/shm") {
            shm if shm.is_dir() => shm.to_owned(),
            _ => std::env::temp_dir(),
        };
        let directory = place.join(format!("vuf-programs.{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("it.json");
        std::fs::write(&file, data).unwrap();
        Self { directory, file }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Why a text that others read is none here.
const STRICTER: [&str; 2] = ["too deep a nesting", "a name that is there twice"];

pub(super) fn run(data: &[u8]) {
    let place = Place::with(data);
    let found = find_backend_programs(&Search {
        directories: Some(vec![place.directory.clone()]),
        all: true,
        device_type: None,
    });
    let theirs = serde_json::from_slice::<Value>(data);
    match (&found[..], data.is_empty()) {
        ([], true) => {}
        ([program], false) => check(program, &place.file, theirs.as_ref()),
        _ => panic!("{found:?}"),
    }
}

fn check(program: &BackendProgram, file: &Path, theirs: Result<&Value, &serde_json::Error>) {
    assert_eq!((&*program.file, &program.hidden_by), (file, &None));
    match (&program.problem, theirs) {
        (None, Ok(theirs)) => assert_eq!(Some(shown(program)), described(theirs)),
        // It has to hold the number, which nobody needs.
        (None, Err(error)) => assert!(error.to_string().contains("out of range"), "{error}"),
        (Some(problem), theirs) => {
            assert_eq!(shown(program), ("", "", ""));
            let told = STRICTER.iter().any(|what| problem.starts_with(what));
            assert!(!problem.is_empty() && !problem.contains('\0'));
            assert!(
                told || theirs.is_err() || described(theirs.unwrap()).is_none(),
                "{problem}"
            );
        }
    }
}

/// Kind, description and binary.
type Texts<'a> = (&'a str, &'a str, &'a str);

fn shown(program: &BackendProgram) -> Texts<'_> {
    let binary = program.binary.to_str().unwrap();
    (&program.device_type, &program.description, binary)
}

/// What a file that is of use says, as the convention has it.
fn described(value: &Value) -> Option<Texts<'_>> {
    let members = value.as_object()?;
    let text = |name| match members.get(name) {
        None => Some(""),
        Some(member) => member.as_str().filter(|text| !text.contains('\0')),
    };
    let texts = (text("type")?, text("description")?, text("binary")?);
    (!texts.0.is_empty() && texts.2.starts_with('/')).then_some(texts)
}
