//! The numbers of requests, for C.

/// GET_FEATURES.
pub const VUF_REQUEST_GET_FEATURES: u32 = 1;
/// SET_FEATURES.
pub const VUF_REQUEST_SET_FEATURES: u32 = 2;
/// SET_OWNER.
pub const VUF_REQUEST_SET_OWNER: u32 = 3;
/// RESET_OWNER.
pub const VUF_REQUEST_RESET_OWNER: u32 = 4;
/// SET_MEM_TABLE.
pub const VUF_REQUEST_SET_MEM_TABLE: u32 = 5;
/// SET_LOG_BASE.
pub const VUF_REQUEST_SET_LOG_BASE: u32 = 6;
/// SET_LOG_FD.
pub const VUF_REQUEST_SET_LOG_FD: u32 = 7;
/// SET_VRING_NUM.
pub const VUF_REQUEST_SET_VRING_NUM: u32 = 8;
/// SET_VRING_ADDR.
pub const VUF_REQUEST_SET_VRING_ADDR: u32 = 9;
/// SET_VRING_BASE.
pub const VUF_REQUEST_SET_VRING_BASE: u32 = 10;
/// GET_VRING_BASE.
pub const VUF_REQUEST_GET_VRING_BASE: u32 = 11;
/// SET_VRING_KICK.
pub const VUF_REQUEST_SET_VRING_KICK: u32 = 12;
/// SET_VRING_CALL.
pub const VUF_REQUEST_SET_VRING_CALL: u32 = 13;
/// SET_VRING_ERR.
pub const VUF_REQUEST_SET_VRING_ERR: u32 = 14;
/// GET_PROTOCOL_FEATURES.
pub const VUF_REQUEST_GET_PROTOCOL_FEATURES: u32 = 15;
/// SET_PROTOCOL_FEATURES.
pub const VUF_REQUEST_SET_PROTOCOL_FEATURES: u32 = 16;
/// GET_QUEUE_NUM.
pub const VUF_REQUEST_GET_QUEUE_NUM: u32 = 17;
/// SET_VRING_ENABLE.
pub const VUF_REQUEST_SET_VRING_ENABLE: u32 = 18;
/// SEND_RARP.
pub const VUF_REQUEST_SEND_RARP: u32 = 19;
/// NET_SET_MTU.
pub const VUF_REQUEST_NET_SET_MTU: u32 = 20;
/// SET_BACKEND_REQ_FD.
pub const VUF_REQUEST_SET_BACKEND_REQ_FD: u32 = 21;
/// IOTLB_MSG.
pub const VUF_REQUEST_IOTLB_MSG: u32 = 22;
/// SET_VRING_ENDIAN.
pub const VUF_REQUEST_SET_VRING_ENDIAN: u32 = 23;
/// GET_CONFIG.
pub const VUF_REQUEST_GET_CONFIG: u32 = 24;
/// SET_CONFIG.
pub const VUF_REQUEST_SET_CONFIG: u32 = 25;
/// CREATE_CRYPTO_SESSION.
pub const VUF_REQUEST_CREATE_CRYPTO_SESSION: u32 = 26;
/// CLOSE_CRYPTO_SESSION.
pub const VUF_REQUEST_CLOSE_CRYPTO_SESSION: u32 = 27;
/// POSTCOPY_ADVISE.
pub const VUF_REQUEST_POSTCOPY_ADVISE: u32 = 28;
/// POSTCOPY_LISTEN.
pub const VUF_REQUEST_POSTCOPY_LISTEN: u32 = 29;
/// POSTCOPY_END.
pub const VUF_REQUEST_POSTCOPY_END: u32 = 30;
/// GET_INFLIGHT_FD.
pub const VUF_REQUEST_GET_INFLIGHT_FD: u32 = 31;
/// SET_INFLIGHT_FD.
pub const VUF_REQUEST_SET_INFLIGHT_FD: u32 = 32;
/// GPU_SET_SOCKET.
pub const VUF_REQUEST_GPU_SET_SOCKET: u32 = 33;
/// RESET_DEVICE.
pub const VUF_REQUEST_RESET_DEVICE: u32 = 34;
/// VRING_KICK.
pub const VUF_REQUEST_VRING_KICK: u32 = 35;
/// GET_MAX_MEM_SLOTS.
pub const VUF_REQUEST_GET_MAX_MEM_SLOTS: u32 = 36;
/// ADD_MEM_REG.
pub const VUF_REQUEST_ADD_MEM_REG: u32 = 37;
/// REM_MEM_REG.
pub const VUF_REQUEST_REM_MEM_REG: u32 = 38;
/// SET_STATUS.
pub const VUF_REQUEST_SET_STATUS: u32 = 39;
/// GET_STATUS.
pub const VUF_REQUEST_GET_STATUS: u32 = 40;
/// GET_SHARED_OBJECT.
pub const VUF_REQUEST_GET_SHARED_OBJECT: u32 = 41;
/// SET_DEVICE_STATE_FD.
pub const VUF_REQUEST_SET_DEVICE_STATE_FD: u32 = 42;
/// CHECK_DEVICE_STATE.
pub const VUF_REQUEST_CHECK_DEVICE_STATE: u32 = 43;
/// GET_SHMEM_CONFIG.
pub const VUF_REQUEST_GET_SHMEM_CONFIG: u32 = 44;
/// GET_VRING_BASE_SKIP_DRAIN.
pub const VUF_REQUEST_GET_VRING_BASE_SKIP_DRAIN: u32 = 45;

#[cfg(test)]
#[test]
fn they_are_those_of_the_table() {
    let source = include_str!("requests.rs");
    for request in crate::message::Request::ALL {
        let name = request.info().name.as_c_str().to_str().unwrap_or_default();
        let line = format!("pub const VUF_REQUEST_{name}: u32 = {};", request.id());
        assert!(source.lines().any(|found| found == line), "{line}");
    }
}
