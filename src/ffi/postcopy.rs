//! Postcopy migration: the guest runs before its memory is there, and the page
//! faults of the back-end are served from where it comes.

use super::device::{give, no_fd_yet};
use super::handle;
use super::memory::with_regions;
use super::types::*;
use crate::message::{MAX_MEM_REGIONS, Request};
use std::os::raw::c_int;

/// Prepares a migration with postcopy (POSTCOPY_ADVISE).
///
/// Needs VUF_PROTOCOL_F_PAGEFAULT, and VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS not
/// acknowledged. On the destination, while memory is still being copied.
///
/// fd  gets the back-end's userfaultfd, which reports its page faults: given
///     (yours to close, close-on-exec); -1 on failure
///
/// Returns 0, otherwise
///   -EINVAL               fd is NULL
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_STATE           the back-end listens already, or
///                         VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS was acknowledged:
///                         back-ends fail later
///   VUF_E_NACK            the back-end has no userfaultfd
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `fd` is null or points
/// to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_postcopy_advise(
    client: *mut vuf_client,
    fd: *mut c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { no_fd_yet(fd) };
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::PostcopyAdvise, |client, c| {
            let fd = c.fd_output(fd, "fd")?;
            give(fd, Some(client.postcopy_advise()?));
            Ok(())
        })
    }
}

/// Begins a postcopy migration (POSTCOPY_LISTEN).
///
/// Needs VUF_PROTOCOL_F_PAGEFAULT. After vuf_client_postcopy_advise(), and before
/// any memory is shared on this connection. The memory table follows with
/// vuf_client_postcopy_set_mem_table(). rust-vmm back-ends answer this and
/// vuf_client_postcopy_end() only with VUF_PROTOCOL_F_REPLY_ACK.
///
/// Returns 0 once the back-end listens, otherwise
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_STATE           vuf_client_postcopy_advise() has not been called,
///                         memory was shared already, or the back-end listens
///                         already
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_postcopy_listen(client: *mut vuf_client) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::PostcopyListen, |client, _| {
            client.postcopy_listen()
        })
    }
}

/// Tells the back-end which memory it may reach, and asks where it has mapped it
/// (SET_MEM_TABLE).
///
/// Once, after vuf_client_postcopy_listen(). The back-end reports page faults by
/// its own addresses: once what they stand for is known to whoever serves the
/// userfaultfd, call vuf_client_postcopy_ack_mem_table(), after which the back-end
/// registers its memory there. Until that it takes nothing else, and every other
/// request on this client is refused with VUF_E_STATE. Beware: libvhost-user 10.0
/// answers with the user_addr that it was sent, wherever it maps the region.
///
/// regions  array of n regions, as for vuf_client_set_mem_table()
/// n        1 to VUF_MAX_MEM_REGIONS
/// bases    gets n addresses: where each region begins in the back-end's own
///          address space
///
/// Returns 0, otherwise
///   -EINVAL         bases is NULL, or as for vuf_client_set_mem_table()
///   -EBADF          a region's fd is negative or not open
///   VUF_E_STATE     not after vuf_client_postcopy_listen(), or a second time
///   VUF_E_PROTOCOL  the answer is not the table that was sent
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `regions` is null or
/// points to `n` regions, whose descriptors stay open during the call; `bases` is
/// null or points to room for `n` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_postcopy_set_mem_table(
    client: *mut vuf_client,
    regions: *const vuf_mem_region,
    n: usize,
    bases: *mut u64,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetMemTable, |client, c| {
            with_regions(client, c, regions, n, |regions| {
                let out = c.buffer(bases, n, "bases")?;
                let mut answer = [0; MAX_MEM_REGIONS];
                let answer = answer.get_mut(..n).unwrap_or_default();
                client.postcopy_set_mem_table(regions, answer)?;
                for (place, base) in out.iter_mut().zip(answer) {
                    place.write(*base);
                }
                Ok(())
            })
        })
    }
}

/// Says that page faults at the back-end's addresses will be served
/// (SET_MEM_TABLE).
///
/// Once, after vuf_client_postcopy_set_mem_table(). Rings may be started then.
///
/// Returns 0 once it is sent, otherwise
///   VUF_E_STATE  not after vuf_client_postcopy_set_mem_table()
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_postcopy_ack_mem_table(client: *mut vuf_client) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SetMemTable, |client, _| {
            client.postcopy_ack_mem_table()
        })
    }
}

/// Ends a postcopy migration (POSTCOPY_END).
///
/// Needs VUF_PROTOCOL_F_PAGEFAULT. Once all memory is there; close the
/// userfaultfd afterwards.
///
/// Returns 0 once the back-end has ended it, otherwise
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_STATE           not after vuf_client_postcopy_listen(), or before
///                         vuf_client_postcopy_ack_mem_table()
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_postcopy_end(client: *mut vuf_client) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::PostcopyEnd, |client, _| {
            client.postcopy_end()
        })
    }
}
