//! Back-end programs: found, and asked what they can do.

pub mod process;
pub mod types;

use self::types::*;
use super::args::{self, Args};
use super::{boundary, handle};
use crate::error::{Error, Kind, Result};
use crate::programs::{BackendProgram, Search, find};
use nix::errno::Errno;
use std::ffi::{CString, OsStr};
use std::os::raw::{c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The programs that were found.
pub(super) struct Programs(Vec<Entry>);

/// One of them, with its texts as C wants them.
struct Entry {
    program: BackendProgram,
    file: CString,
    device_type: CString,
    description: CString,
    binary: CString,
    hidden_by: Option<CString>,
    problem: Option<CString>,
    said: OnceLock<Said>,
}

/// What it has said of itself: pointers to the texts, which stay where they are.
struct Said {
    pointers: Vec<*const c_char>,
    _features: Vec<CString>,
}

/// A text for C, up to a NUL; there is none in those that were checked.
fn text(text: &OsStr) -> CString {
    let bytes = text.as_bytes().split(|byte| *byte == 0).next();
    CString::new(bytes.unwrap_or_default()).unwrap_or_default()
}

fn optional(text: Option<&CString>) -> *const c_char {
    text.map_or(std::ptr::null(), |text| text.as_ptr())
}

impl From<BackendProgram> for Entry {
    fn from(program: BackendProgram) -> Self {
        Self {
            file: text(program.file.as_os_str()),
            device_type: text(program.device_type.as_ref()),
            description: text(program.description.as_ref()),
            binary: text(program.binary.as_os_str()),
            hidden_by: program.hidden_by.as_ref().map(|it| text(it.as_os_str())),
            problem: program.problem.as_ref().map(|it| text(it.as_ref())),
            said: OnceLock::new(),
            program,
        }
    }
}

impl Entry {
    fn public(&self) -> vuf_backend_program {
        let said = self.said.get();
        let features = said.filter(|said| !said.pointers.is_empty());
        vuf_backend_program {
            size: size_of::<vuf_backend_program>(),
            file: self.file.as_ptr(),
            device_type: self.device_type.as_ptr(),
            description: self.description.as_ptr(),
            binary: self.binary.as_ptr(),
            hidden_by: optional(self.hidden_by.as_ref()),
            problem: optional(self.problem.as_ref()),
            features: features.map_or(std::ptr::null(), |said| said.pointers.as_ptr()),
            n_features: features.map_or(0, |said| said.pointers.len()),
            asked: u32::from(said.is_some()),
            reserved: 0,
        }
    }
}

impl Programs {
    fn get(&self, index: usize) -> Result<&Entry> {
        self.0.get(index).ok_or_else(|| {
            let text = format!("index is {index}, and there are {}", self.0.len());
            Error::new(Kind::Argument(Errno::ENOENT), text)
        })
    }
}

/// # Safety
/// What the caller put into the struct is as it says.
unsafe fn search(c: &Args, given: *const vuf_backend_search) -> Result<Search> {
    if given.is_null() {
        return Ok(Search::default());
    }
    // SAFETY: pointers are the caller's promise.
    let given: vuf_backend_search = unsafe { c.extensible_pointers(given, "search") }?;
    args::zero(&[u64::from(given.reserved)], "search")?;
    let directories = match given.directories.is_null() {
        true if given.n_directories > 0 => {
            return Err(Error::invalid("search->directories is NULL"));
        }
        true => None,
        false => {
            let name = "search->directories";
            // SAFETY: pointers are the caller's promise.
            let paths = unsafe { c.array_pointers(given.directories, given.n_directories, name) }?;
            let paths = paths.iter().map(|path| c.path(*path, name));
            Some(
                paths
                    .map(|path| path.map(PathBuf::from))
                    .collect::<Result<_>>()?,
            )
        }
    };
    let device_type = match given.device_type.is_null() {
        true => None,
        false => {
            let name = c.path(given.device_type, "search->device_type")?;
            Some(name.to_string_lossy().into_owned())
        }
    };
    match given.flags & !VUF_BACKEND_SEARCH_ALL {
        0 => Ok(Search {
            device_type,
            directories,
            all: given.flags != 0,
        }),
        unknown => Err(Error::invalid(format!(
            "search->flags has unknown bits: {unknown:#x}"
        ))),
    }
}

/// Looks for the back-ends that are installed, by the files that describe them.
///
/// By convention these are the *.json in the following directories, the most specific
/// last. Of files with the same name the most specific one counts; an empty one says
/// that there is none. The result is sorted by name, and the first that fits is
/// the one to use.
///   /usr/share/qemu/vhost-user, and qemu/vhost-user in each of $XDG_DATA_DIRS
///     (/usr/local/share and /usr/share), the first of them last
///   /etc/qemu/vhost-user
///   $XDG_CONFIG_HOME/qemu/vhost-user ($HOME/.config)
/// The environment counts for nothing in a program that has rights its user lacks.
/// Whether a program is there is not looked at. What a file says beyond type,
/// description and binary is ignored.
///
/// search  NULL for all; read during the call
/// out     gets the list; NULL on failure
/// n       gets how many are in it; may be 0
///
/// Returns 0, otherwise
///   -EINVAL  out or n is NULL, or search is not valid
///   -E2BIG   search has fields that this library does not know
///
/// # Safety
/// `search` is null or points to `search->size` bytes, with an array of as many texts
/// as it says; `out` and `n` are null or point to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_programs_find(
    search: *const vuf_backend_search,
    out: *mut *mut vuf_backend_programs,
    n: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let c = unsafe { Args::new() };
    boundary::guard(|| {
        let out = c.output(out, "out")?.write(std::ptr::null_mut());
        let n = c.output(n, "n")?;
        // SAFETY: the caller's promise.
        let search = unsafe { self::search(&c, search) }?;
        let entries: Vec<Entry> = find(&search).into_iter().map(Entry::from).collect();
        n.write(entries.len());
        *out = handle::new(Programs(entries));
        Ok(())
    })
}

/// Frees a list, and the texts in it.
///
/// programs  may be NULL, which does nothing
///
/// # Safety
/// `programs` is null or a list that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_programs_free(programs: *mut vuf_backend_programs) {
    boundary::guard(|| {
        // SAFETY: the caller's promise.
        unsafe { handle::free(programs) };
        Ok(())
    });
}

/// Tells what is known of a back-end.
///
/// index    from 0 on
/// program  set program->size before the call; the rest is filled in
///
/// Returns 0, otherwise
///   -EINVAL  an argument is NULL, or program->size is too small
///   -ENOENT  there are not so many
///   -E2BIG   program->size is above 65536
///
/// # Safety
/// `programs` is null or a list that has not been freed; `program` is null or points to
/// `program->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_programs_get(
    programs: *const vuf_backend_programs,
    index: usize,
    program: *mut vuf_backend_program,
) -> c_int {
    let body = |programs: &Programs, c: &Args| {
        let size = c.result_size(program, "program")?;
        let known = programs.get(index)?.public();
        // SAFETY: pointers, sizes and a pair of smaller numbers, without padding.
        unsafe { c.fill_pointers(program, size, &known) }
    };
    // SAFETY: the caller's promise.
    unsafe { handle::with_programs(programs, body) }
}

/// Runs a back-end with --print-capabilities: afterwards vuf_backend_programs_get() has
/// its features. It has ended when this returns. Done once; later calls return 0 at
/// once.
///
/// index       from 0 on
/// timeout_ms  how long it has; then it is killed. VUF_TIMEOUT_DEFAULT is 5000
///
/// Returns 0, otherwise
///   -EINVAL             programs is NULL
///   -ENOENT             there are not so many, or the program is not there
///   -EACCES             it may not be run
///   -ETIMEDOUT          it has not ended in time
///   VUF_E_NACK          it has failed; it may not know of capabilities
///   VUF_E_DISCONNECTED  a signal has ended it
///   VUF_E_PROTOCOL      what it prints is not understood, is too much, or is for
///                       another type of device than its file says
///   VUF_E_STATE         its file is of no use
/// or another negative errno from the system, as -EMFILE or -ENOEXEC.
///
/// # Safety
/// `programs` is null or a list that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_programs_ask(
    programs: *mut vuf_backend_programs,
    index: usize,
    timeout_ms: u32,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_programs(programs, |programs, _| {
            let entry = programs.get(index)?;
            if entry.said.get().is_some() {
                return Ok(());
            }
            let said = entry.program.ask(args::timeout(timeout_ms))?;
            let features: Vec<_> = said.features.iter().map(|it| text(it.as_ref())).collect();
            // Of two threads that have asked, the first counts.
            let _ = entry.said.set(Said {
                pointers: features.iter().map(|feature| feature.as_ptr()).collect(),
                _features: features,
            });
            Ok(())
        })
    }
}
