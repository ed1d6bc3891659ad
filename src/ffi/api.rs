//! All functions behind one symbol. The table itself is generated from the map of
//! the exported symbols and the functions of this folder (`make header`).

#[rustfmt::skip]
pub mod table;

use self::table::{TABLE, vuf_api};

/// The version of struct vuf_api in this header. It changes only with the soname.
pub const VUF_API_VERSION: u32 = 1;

/// Gives all functions of the library in one table, to a program that loads it with
/// dlopen() and then has no other name to look up:
///
///   void *library = dlopen(VUF_SONAME, RTLD_NOW | RTLD_LOCAL);
///   const struct vuf_api *(*get_api)(uint32_t);
///   *(void **)&get_api = dlsym(library, "vuf_get_api");
///   const struct vuf_api *vuf = get_api(VUF_API_VERSION);
///
/// Functions that later releases bring stand behind those that there are. A library
/// that is older than the header of the program has a shorter table: see
/// VUF_API_HAS().
///
/// version  VUF_API_VERSION
///
/// Returns the table, which stays valid until the process ends, also after
/// dlclose(); NULL if the library has none of this version.
#[unsafe(no_mangle)]
pub extern "C" fn vuf_get_api(version: u32) -> *const vuf_api {
    match version {
        VUF_API_VERSION => &raw const TABLE,
        _ => std::ptr::null(),
    }
}
