//! What the documents point to is there: files, headings, man pages, and the names of
//! the C interface.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const HEADER: &str = include_str!("../include/vhost_user_frontend.h");

/// Pages of the system that ours may name.
const SYSTEM_PAGES: &[&str] = &["dlopen 3", "fork 2"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of a folder that end so.
fn files(folder: &str, ends: &[&str]) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(root().join(folder))
        .expect(folder)
        .map(|entry| entry.unwrap().path())
        .filter(|path| ends.iter().any(|end| path.to_str().unwrap().ends_with(end)))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{folder}");
    files
}

fn documents() -> Vec<PathBuf> {
    [files(".", &[".md"]), files("docs", &[".md"])].concat()
}

fn pages() -> Vec<PathBuf> {
    files("man", &[".1", ".7"])
}

/// Without its blocks of code, between ``` or indented.
fn prose(text: &str) -> String {
    let mut fenced = false;
    text.lines()
        .filter(|line| {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            !(fence || fenced || line.starts_with("    "))
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// What stands between `begin` and `end`, each time.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> Vec<&'a str> {
    text.split(begin)
        .skip(1)
        .map(|rest| rest.split(end).next().unwrap())
        .collect()
}

/// The anchors of a document, as forges make them of its headings.
fn anchors(text: &str) -> BTreeSet<String> {
    prose(text)
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

/// Why a link in a document leads nowhere.
fn broken(document: &Path, link: &str) -> Option<String> {
    if link.starts_with("https://") {
        return None;
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => document.to_path_buf(),
        _ => document.parent().unwrap().join(file),
    };
    if !target.exists() {
        return Some(format!("{}: there is no {link}", document.display()));
    }
    let there = anchor.is_empty() || anchors(&read(&target)).contains(anchor);
    (!there).then(|| format!("{}: no heading fits {link}", document.display()))
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    let mut wrong = Vec::new();
    for document in documents() {
        for link in between(&prose(&read(&document)), "](", ")") {
            links += 1;
            wrong.extend(broken(&document, link));
        }
    }
    assert!(links > 0);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_link_that_leads_nowhere_is_noticed() {
    let here = root().join("README.md");
    assert_eq!(broken(&here, "docs/guide.md"), None);
    assert_eq!(broken(&here, "docs/device.md#threads"), None);
    assert_eq!(broken(&here, "#try-it"), None);
    assert!(broken(&here, "docs/none.md").is_some());
    assert!(broken(&here, "docs/device.md#none").is_some());
    assert!(broken(&here, "#none").is_some());
}

/// Where a name in a document looks like a file of ours.
fn is_path(name: &str) -> bool {
    let ours = [
        "abi/",
        "benches/",
        "c-tests/",
        "cmake/",
        "cpp-tests/",
        "debian/",
        "docs/",
        "examples/",
        "fuzz/",
        "include/",
        "man/",
        "mock/",
        "packaging/",
        "pkgconfig/",
        "src/",
        "tests/",
    ];
    ours.iter().any(|folder| name.starts_with(folder))
        && !name.contains(|c: char| c.is_whitespace() || "*<>[]{}".contains(c))
}

#[test]
fn files_that_are_named_are_there() {
    let mut named = 0;
    for document in documents() {
        let text = prose(&read(&document));
        for name in text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| is_path(name))
        {
            named += 1;
            assert!(
                root().join(name).exists(),
                "{}: there is no {name}",
                document.display()
            );
        }
    }
    for page in pages() {
        for name in between(&read(&page), "\n.Pa ", "\n") {
            let name = name.split(' ').next().unwrap();
            if is_path(name) {
                named += 1;
                assert!(root().join(name).exists(), "{}: {name}", page.display());
            }
        }
    }
    assert!(named > 30, "{named}");
}

#[test]
fn man_pages_that_are_named_are_there() {
    for page in pages() {
        let text = read(&page);
        let named = between(&text, "\n.Xr ", "\n");
        assert!(!named.is_empty(), "{}", page.display());
        for line in named {
            let words: Vec<_> = line.split(' ').collect();
            let [name, section, ..] = words[..] else {
                panic!("{}: {line}", page.display());
            };
            let ours = root().join(format!("man/{name}.{section}"));
            assert!(
                ours.exists() || SYSTEM_PAGES.contains(&format!("{name} {section}").as_str()),
                "{}: there is no {name}({section})",
                page.display()
            );
        }
    }
}

/// The words of C in a text: `vuf_*` and `VUF_*`, but not beginnings of such.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("vuf_") || word.starts_with("VUF_"))
        .filter(|word| !word.ends_with('_'))
        .collect()
}

#[test]
fn names_of_the_c_interface_are_in_the_header() {
    let header = names(HEADER);
    let mut found = 0;
    for file in [documents(), pages()].concat() {
        let text = read(&file);
        for name in names(&text) {
            // The environment of the tests, and the symbol version.
            let other =
                ["VUF_BENCH_ROUNDS", "VUF_0"].contains(&name) || name.starts_with("VUF_SIM_");
            assert!(
                other || header.contains(name),
                "{}: the header has no {name}",
                file.display()
            );
            found += 1;
        }
    }
    assert!(found > 200, "{found}");
}

/// The guide says of each event what to do.
#[test]
fn the_guide_has_every_event() {
    let guide = read(&root().join("docs/guide.md"));
    let mut events = 0;
    for name in names(HEADER) {
        if let Some(event) = name.strip_prefix("VUF_DEVICE_EVENT_") {
            let row = format!("\n| {event} | ");
            assert!(event == "NONE" || guide.contains(&row), "{event}");
            events += 1;
        }
    }
    assert!(events > 10, "{events}");
}
